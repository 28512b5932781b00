//! `dormouse image build`: a folder with a Dockerfile to an image that can be launched.

use super::client::{Client, is_refused_as};
use super::follow::{self, Outcome};
use super::print;
use super::table::size;
use super::upload::Artifact;
use crate::config::Overrides;
use anyhow::{Context, Result, bail};
use clap::Args;
use dormouse_api::ApiError;
use dormouse_core::limits;
use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to build and how.
#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// Folder with a Dockerfile; what its .dockerignore lists is not sent
    folder: PathBuf,
    /// Name of the image [default: the folder's]
    #[arg(long, short)]
    name: Option<String>,
    /// Baseline memory in MiB; a microVM sees four times as much [default: 2048]
    #[arg(long, value_name = "MIB", value_parser = memory)]
    memory: Option<u32>,
    /// Variable that the app starts with; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Port on which the app serves its ready hook
    #[arg(long, value_name = "PORT")]
    ready: Option<u16>,
    /// Tag of a new image; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    tag: Vec<(String, String)>,
    /// Bucket for the code, made if need be [default: dormouse-artifacts-ACCOUNT]
    #[arg(long)]
    bucket: Option<String>,
    /// Do not make a new version of an image that exists
    #[arg(long)]
    no_update: bool,
    /// Do not wait for the build
    #[arg(long)]
    no_follow: bool,
}

#[derive(Debug, Deserialize)]
struct Managed {
    items: Vec<ManagedItem>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManagedItem {
    image_arn: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    image_arn: String,
    image_version: String,
}

/// Builds, and follows the build to its end.
pub(super) async fn run(over: &Overrides, args: &BuildArgs) -> Result<ExitCode> {
    let client = Client::connect(over)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => folder_name(&args.folder)?,
    };
    let account = client.account().await?;
    let folder = args.folder.clone();
    let artifact = tokio::task::spawn_blocking(move || Artifact::pack(&folder)).await??;
    print(&format!(
        "{}: {} files, {} packed\n",
        args.folder.display(),
        artifact.packed.files,
        size(artifact.length)
    ))?;
    let default_bucket = || format!("dormouse-artifacts-{account}");
    let bucket = args.bucket.clone().unwrap_or_else(default_bucket);
    let uri = artifact.upload(&client, &bucket, &name).await?;
    let created = create_or_update(&client, args, &name, &account, &uri).await?;
    print(&format!(
        "{} version {}\n\n",
        created.image_arn, created.image_version
    ))?;
    if args.no_follow {
        print(&format!(
            "Follow the build: dormouse logs {name} --follow\n"
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let version = Some(created.image_version.as_str());
    let build = follow::find_build(&client, &created.image_arn, version).await?;
    match follow::print_log(&client, &build, true).await? {
        Some(Outcome::Succeeded) => {
            let version = &created.image_version;
            print(&format!(
                "\n{name} {version} is ready. Launch it: dormouse run {name}\n"
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Outcome::Failed(reason)) => bail!(
            "{name} {} was not built: {reason}\nBuild it again: dormouse image build {}{}",
            created.image_version,
            args.folder.display(),
            if args.name.is_some() {
                format!(" --name {name}")
            } else {
                String::new()
            }
        ),
        None => bail!("the build's end was not seen: dormouse logs {name} --follow"),
    }
}

async fn create_or_update(
    client: &Client,
    args: &BuildArgs,
    name: &str,
    account: &str,
    uri: &str,
) -> Result<Created> {
    const IMAGES: &str = "/2025-09-09/microvm-images";
    let managed: Managed = client.get("/2025-09-09/managed-microvm-images").await?;
    let base = managed.items.into_iter().next();
    let base = base.context("the daemon has no base image")?.image_arn;
    let spec = spec(args, uri, &base, account);
    if let Some(arn) = follow::find_image(client, name).await? {
        if args.no_update {
            bail!(
                "there is an image {name} already: choose another --name, or leave --no-update out"
            );
        }
        let path = format!("{IMAGES}/{}", super::client::segment(&arn));
        let updated = client.call(Method::PUT, &path, Some(&spec)).await;
        return updated.with_context(|| format!("update image {name}"));
    }
    let mut spec = spec;
    spec.insert("name".to_owned(), json!(name));
    if !args.tag.is_empty() {
        spec.insert("tags".to_owned(), Value::Object(object(&args.tag)));
    }
    let created = client.call(Method::POST, IMAGES, Some(&spec)).await;
    match created {
        Err(error) if is_refused_as(&error, &ApiError::image_name_taken(name)) => {
            Err(error).context(format!("image {name} was made by somebody else just now"))
        }
        created => created.with_context(|| format!("create image {name}")),
    }
}

/// What creation and update have in common. An update takes nothing over from the version before.
fn spec(args: &BuildArgs, uri: &str, base: &str, account: &str) -> Map<String, Value> {
    let mut spec = Map::new();
    let mut set = |name: &str, value: Value| spec.insert(name.to_owned(), value);
    set("codeArtifact", json!({ "uri": uri }));
    set("baseImageArn", json!(base));
    // Dormouse has no IAM: the role is named because the API asks for one.
    set(
        "buildRoleArn",
        json!(format!("arn:aws:iam::{account}:role/dormouse-build")),
    );
    if let Some(memory) = args.memory {
        set("resources", json!([{ "minimumMemoryInMiB": memory }]));
    }
    if !args.env.is_empty() {
        set("environmentVariables", Value::Object(object(&args.env)));
    }
    if let Some(port) = args.ready {
        set(
            "hooks",
            json!({ "port": port, "microvmImageHooks": { "ready": "ENABLED" } }),
        );
    }
    spec
}

fn object(pairs: &[(String, String)]) -> Map<String, Value> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect()
}

/// A name for the image, made of the folder's: what the API does not take becomes a dash.
fn folder_name(folder: &Path) -> Result<String> {
    let path = folder
        .canonicalize()
        .with_context(|| format!("open {}", folder.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(plain).collect();
    let name = name.trim_matches('-').to_owned();
    if name.is_empty() {
        bail!(
            "{} makes no name for an image: give one with --name",
            path.display()
        );
    }
    Ok(name)
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

fn memory(text: &str) -> Result<u32, String> {
    let sizes = limits::MEMORY_SIZES_MIB;
    let size = text.parse().ok().filter(|size| sizes.contains(size));
    size.ok_or_else(|| format!("write one of {sizes:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BuildArgs,
    }

    #[test]
    fn options_become_the_request() {
        let line = "build ./app --memory 512 -e A=1 -e B=x=y --ready 9000 --tag team=a";
        let args = Line::try_parse_from(line.split(' ')).unwrap().args;
        let spec = spec(&args, "s3://b/k", "arn:base", "000000000000");
        assert_eq!(
            Value::Object(spec),
            json!({
                "codeArtifact": { "uri": "s3://b/k" },
                "baseImageArn": "arn:base",
                "buildRoleArn": "arn:aws:iam::000000000000:role/dormouse-build",
                "resources": [{ "minimumMemoryInMiB": 512 }],
                "environmentVariables": { "A": "1", "B": "x=y" },
                "hooks": { "port": 9000, "microvmImageHooks": { "ready": "ENABLED" } },
            })
        );
        for bad in [
            "build . --memory 600",
            "build . -e =1",
            "build . -e A",
            "build",
        ] {
            Line::try_parse_from(bad.split(' ')).unwrap_err();
        }
    }

    #[test]
    fn a_folder_names_its_image() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("My app.v2");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(folder_name(&folder).unwrap(), "My-app-v2");
        folder_name(&parent.path().join("absent")).unwrap_err();
    }
}
