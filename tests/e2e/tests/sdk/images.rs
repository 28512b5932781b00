//! Every operation on images, versions, builds, managed images and tags, and their errors as typed values.

use super::{client, variable};
use anyhow::{Context, Result, bail, ensure};
use aws_sdk_lambdamicrovms::Client;
use aws_sdk_lambdamicrovms::error::ProvideErrorMetadata;
use aws_sdk_lambdamicrovms::types::{
    CodeArtifact, MicrovmImageState, MicrovmImageVersionState, MicrovmImageVersionStatus, Resources,
};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const TIMEOUT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(200);

#[tokio::test]
#[ignore = "needs a daemon: tests/e2e/py/test_flow.py runs it"]
async fn every_image_operation() -> Result<()> {
    let client = client()?;
    let base = managed(&client).await?;
    let image = create(&client, &base).await?;
    refused_while_building(&client, &image).await?;
    until(&client, &image, &MicrovmImageState::Created).await?;
    tags(&client, &image).await?;

    let updated = client
        .update_microvm_image()
        .image_identifier(&image)
        .code_artifact(CodeArtifact::Uri(variable("DORMOUSE_E2E_ARTIFACT")?))
        .base_image_arn(&base)
        .build_role_arn(variable("DORMOUSE_E2E_ROLE")?)
        .resources(Resources::builder().minimum_memory_in_mib(512).build()?)
        .send()
        .await?;
    ensure!(updated.state == MicrovmImageState::Updating);
    ensure!(updated.image_version == "2.0");
    until(&client, &image, &MicrovmImageState::Updated).await?;
    versions(&client, &image).await?;
    builds(&client, &image).await?;
    delete(&client, &image).await
}

async fn managed(client: &Client) -> Result<String> {
    let images = client.list_managed_microvm_images().send().await?;
    let base = images.items.first().context("no managed image")?;
    let versions = client
        .list_managed_microvm_image_versions()
        .image_identifier(&base.image_arn)
        .send()
        .await?;
    ensure!(!versions.items.is_empty());
    Ok(base.image_arn.clone())
}

async fn create(client: &Client, base: &str) -> Result<String> {
    let created = client
        .create_microvm_image()
        .name("images-rust")
        .code_artifact(CodeArtifact::Uri(variable("DORMOUSE_E2E_ARTIFACT")?))
        .base_image_arn(base)
        .build_role_arn(variable("DORMOUSE_E2E_ROLE")?)
        .resources(Resources::builder().minimum_memory_in_mib(512).build()?)
        .tags("made-by", "rust")
        .send()
        .await?;
    ensure!(created.state == MicrovmImageState::Creating);
    let listed = client
        .list_microvm_images()
        .name_filter("images-rust")
        .into_paginator()
        .items()
        .send()
        .collect::<Result<Vec<_>, _>>()
        .await?;
    ensure!(
        listed
            .iter()
            .any(|item| item.image_arn == created.image_arn)
    );
    Ok(created.image_arn)
}

async fn refused_while_building(client: &Client, image: &str) -> Result<()> {
    let deleted = client.delete_microvm_image().image_identifier(image);
    let Err(error) = deleted.send().await else {
        bail!("an image was deleted in the middle of its build");
    };
    let error = error.into_service_error();
    ensure!(error.is_validation_exception(), "{error:?}");
    let text = format!("Cannot delete MicroVM image in its current state: {image}");
    ensure!(error.message() == Some(text.as_str()), "{error:?}");
    Ok(())
}

async fn tags(client: &Client, image: &str) -> Result<()> {
    client
        .tag_resource()
        .resource(image)
        .tags("team", "a/b c")
        .send()
        .await?;
    client
        .untag_resource()
        .resource(image)
        .tag_keys("made-by")
        .send()
        .await?;
    let listed = client.list_tags().resource(image).send().await?;
    let tags = listed.tags.context("no tags in the answer")?;
    ensure!(tags.len() == 1 && tags["team"] == "a/b c", "{tags:?}");
    Ok(())
}

async fn versions(client: &Client, image: &str) -> Result<()> {
    let listed = client
        .list_microvm_image_versions()
        .image_identifier(image)
        .send()
        .await?;
    let numbers: Vec<_> = listed
        .items
        .iter()
        .map(|v| v.image_version.as_str())
        .collect();
    ensure!(numbers == ["2.0", "1.0"], "{numbers:?}");
    let off = client
        .update_microvm_image_version()
        .image_identifier(image)
        .image_version("2")
        .status(MicrovmImageVersionStatus::Inactive)
        .send()
        .await?;
    ensure!(off.status == MicrovmImageVersionStatus::Inactive);
    let read = client
        .get_microvm_image_version()
        .image_identifier(image)
        .image_version("2.0")
        .send()
        .await?;
    ensure!(read.status == MicrovmImageVersionStatus::Inactive);
    ensure!(read.state == MicrovmImageVersionState::Successful);
    let run = client
        .run_microvm()
        .image_identifier(image)
        .image_version("2");
    let Err(error) = run.send().await else {
        bail!("an inactive version was launched");
    };
    ensure!(error.into_service_error().is_resource_not_found_exception());
    Ok(())
}

async fn builds(client: &Client, image: &str) -> Result<()> {
    let listed = client
        .list_microvm_image_builds()
        .image_identifier(image)
        .image_version("1.0")
        .send()
        .await?;
    let build = listed.items.first().context("no build")?;
    let read = client
        .get_microvm_image_build()
        .image_identifier(image)
        .image_version("1.0")
        .build_id(&build.build_id)
        .send()
        .await?;
    let sizes = read.snapshot_build.context("no sizes")?;
    ensure!(sizes.memory_snapshot_size_in_bytes > Some(0));
    Ok(())
}

async fn delete(client: &Client, image: &str) -> Result<()> {
    let version = client
        .delete_microvm_image_version()
        .image_identifier(image)
        .image_version("1.0")
        .send()
        .await?;
    ensure!(version.state == MicrovmImageVersionState::Deleting);
    until(client, image, &MicrovmImageState::Updated).await?;
    let last = client
        .delete_microvm_image_version()
        .image_identifier(image)
        .image_version("2.0");
    let Err(error) = last.send().await else {
        bail!("the last version was deleted");
    };
    let text = "This is the last version. Please delete the entire image";
    ensure!(error.into_service_error().message() == Some(text));
    let deleted = client
        .delete_microvm_image()
        .image_identifier(image)
        .send()
        .await?;
    ensure!(deleted.state == MicrovmImageState::Deleting);
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        let read = client.get_microvm_image().image_identifier(image);
        match read.send().await {
            Ok(_) => sleep(POLL).await,
            Err(error) => {
                ensure!(error.into_service_error().is_resource_not_found_exception());
                return Ok(());
            }
        }
    }
    bail!("{image} was not deleted")
}

async fn until(client: &Client, image: &str, wanted: &MicrovmImageState) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let read = client.get_microvm_image().image_identifier(image);
        let state = read.send().await?.state;
        if state == *wanted {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{image} is {state}, not {wanted}"
        );
        sleep(POLL).await;
    }
}
