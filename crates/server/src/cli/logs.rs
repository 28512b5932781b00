//! `dormouse logs`: the log of an image's newest build.

use super::client::Client;
use super::{follow, print_bytes};
use crate::config::{Config, Overrides};
use crate::sealing;
use anyhow::{Context, Result, bail};
use dormouse_core::image::{Build, Image, Version, VersionState};
use dormouse_core::{BuildId, ImageArn};
use dormouse_node::layout::Layout;
use dormouse_store::{Order, Query, Store, version_key};
use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

/// Pause between two looks for more.
const POLL: Duration = Duration::from_millis(300);
const READ_BYTES: usize = 64 << 10;

/// Prints the log of an image in the account of the environment's key, wherever its daemon is.
pub(super) async fn show_remote(over: &Overrides, image: &str, follow: bool) -> Result<()> {
    let client = Client::connect(over)?;
    let arn = follow::find_image(&client, image).await?;
    let arn = arn.with_context(|| format!("there is no image {image}"))?;
    let build = follow::find_build(&client, &arn, None).await?;
    follow::print_log(&client, &build, follow).await.map(drop)
}

/// Prints the log of an image of this host, with `follow` until the build ends; no daemon need run.
pub(super) async fn show(config: &Config, image: &str, follow: bool) -> Result<()> {
    let database = config.database();
    if !database.exists() {
        bail!("no daemon has run in {} yet", config.data_dir.display());
    }
    let store = Store::sqlite(&database, sealing::for_reading(config)?.into()).await?;
    let arn = find_image(&store, image).await?;
    let build = newest_build(&store, &arn).await?;
    let path = Layout::new(&config.data_dir).build(&build).log();
    let mut log = None;
    loop {
        // Asked before the log is read: what an ended build has logged is all there.
        let ended = has_ended(&store, &build).await?;
        if log.is_none() {
            log = match File::open(&path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    return Err(error).with_context(|| format!("open {}", path.display()));
                }
            };
        }
        if let Some(log) = &mut log {
            print_rest(log)?;
        }
        if ended || !follow {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    match log {
        Some(_) => Ok(()),
        None => bail!("the build has not begun: it waits in line"),
    }
}

async fn find_image(store: &Store, image: &str) -> Result<ImageArn> {
    if let Ok(arn) = ImageArn::parse(image) {
        return Ok(arn);
    }
    let mut query = Query {
        order: Order::NewestFirst,
        ..Query::default()
    };
    loop {
        let page = store.list::<Image>(&query).await?;
        let Some(last) = page.last() else {
            bail!("there is no image {image}");
        };
        query.after = Some(last.seq);
        if let Some(found) = page.into_iter().find(|found| found.value.arn.name == image) {
            return Ok(found.value.arn);
        }
    }
}

async fn newest_build(store: &Store, image: &ImageArn) -> Result<BuildId> {
    let newest = |parent: String| Query {
        order: Order::NewestFirst,
        limit: Some(1),
        ..Query::under(parent)
    };
    let version = store.list::<Version>(&newest(image.to_string())).await?;
    let version = version
        .first()
        .with_context(|| format!("there is no image {image}"))?;
    let key = version_key(image, &version.value.version);
    let build = store.list::<Build>(&newest(key)).await?;
    let build = build
        .first()
        .with_context(|| format!("{image} has no build"))?;
    Ok(build.value.id.clone())
}

async fn has_ended(store: &Store, build: &BuildId) -> Result<bool> {
    let build = store.get::<Build>(build.as_str()).await?;
    Ok(build.is_none_or(|build| {
        matches!(
            build.value.state,
            VersionState::Successful | VersionState::Failed
        )
    }))
}

fn print_rest(log: &mut File) -> Result<()> {
    let mut chunk = vec![0; READ_BYTES];
    loop {
        match log.read(&mut chunk).context("read the log")? {
            0 => return Ok(()),
            length => print_bytes(&chunk[..length])?,
        }
    }
}
