//! The main flow with AWS's Rust SDK: image, launch, sleep, wake, end.
//!
//! The end-to-end suite runs it (`tests/e2e/py/test_flow.py`), with an artifact that is in S3 already and the
//! daemon's address and keys in the environment.

#[path = "sdk/images.rs"]
mod images;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_lambdamicrovms::Client;
use aws_sdk_lambdamicrovms::config::{Config, Credentials, Region};
use aws_sdk_lambdamicrovms::types::{
    CodeArtifact, IdlePolicy, MicrovmImageState, MicrovmState, PortSpecification, Resources,
};
use serde_json::Value;
use std::env;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::time::sleep;

const TOKEN_HEADER: &str = "X-aws-proxy-auth";
const BUILD_TIMEOUT: Duration = Duration::from_secs(300);
const STATE_TIMEOUT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(200);

#[tokio::test]
#[ignore = "needs a daemon: tests/e2e/py/test_flow.py runs it"]
async fn main_flow() -> Result<()> {
    let client = client()?;
    let image = build_image(&client).await?;
    let policy = IdlePolicy::builder()
        .max_idle_duration_seconds(600)
        .suspended_duration_seconds(600)
        .auto_resume_enabled(true)
        .build()?;
    let vm = client
        .run_microvm()
        .image_identifier(image)
        .idle_policy(policy)
        .send()
        .await?;
    let app = App {
        address: vm.endpoint,
        token: token(&client, &vm.microvm_id).await?,
    };

    ensure!(app.get("/").await?["counter"] == 1);
    ensure!(app.get("/").await?["counter"] == 2);
    let before = app.get("/state").await?;
    client
        .suspend_microvm()
        .microvm_identifier(&vm.microvm_id)
        .send()
        .await?;
    wait_for(&client, &vm.microvm_id, &MicrovmState::Suspended).await?;

    let after = app.get("/state").await?;
    for what in ["counter", "child_pid", "hostname"] {
        ensure!(
            after[what] == before[what],
            "{what}: {} became {}",
            before[what],
            after[what]
        );
    }
    ensure!(after["random"] != before["random"], "random numbers repeat");
    ensure!(app.get("/").await?["counter"] == 3);

    client
        .terminate_microvm()
        .microvm_identifier(&vm.microvm_id)
        .send()
        .await?;
    wait_for(&client, &vm.microvm_id, &MicrovmState::Terminated).await
}

fn client() -> Result<Client> {
    let credentials = Credentials::new(
        variable("AWS_ACCESS_KEY_ID")?,
        variable("AWS_SECRET_ACCESS_KEY")?,
        None,
        None,
        "environment",
    );
    // The address comes from AWS_ENDPOINT_URL in the same way; aws-config, which reads it, is no part of this crate.
    let config = Config::builder()
        .region(Region::new(variable("AWS_REGION")?))
        .endpoint_url(variable("AWS_ENDPOINT_URL")?)
        .credentials_provider(credentials)
        .build();
    Ok(Client::from_conf(config))
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("environment variable {name}"))
}

async fn build_image(client: &Client) -> Result<String> {
    let image = client
        .create_microvm_image()
        .name("hello-rust")
        .code_artifact(CodeArtifact::Uri(variable("DORMOUSE_E2E_ARTIFACT")?))
        .base_image_arn(variable("DORMOUSE_E2E_BASE_IMAGE")?)
        .build_role_arn(variable("DORMOUSE_E2E_ROLE")?)
        .resources(Resources::builder().minimum_memory_in_mib(512).build()?)
        .send()
        .await?
        .image_arn;
    let deadline = Instant::now() + BUILD_TIMEOUT;
    while Instant::now() < deadline {
        match client
            .get_microvm_image()
            .image_identifier(&image)
            .send()
            .await?
            .state
        {
            MicrovmImageState::Creating => sleep(POLL).await,
            MicrovmImageState::Created => return Ok(image),
            state => bail!("image is {state}"),
        }
    }
    bail!("image was not built within {BUILD_TIMEOUT:?}")
}

async fn token(client: &Client, microvm: &str) -> Result<String> {
    let answer = client
        .create_microvm_auth_token()
        .microvm_identifier(microvm)
        .expiration_in_minutes(10)
        .allowed_ports(PortSpecification::Port(8080))
        .send()
        .await?;
    answer
        .auth_token
        .get(TOKEN_HEADER)
        .cloned()
        .context("no token in the answer")
}

async fn wait_for(client: &Client, microvm: &str, wanted: &MicrovmState) -> Result<()> {
    let deadline = Instant::now() + STATE_TIMEOUT;
    loop {
        let state = client
            .get_microvm()
            .microvm_identifier(microvm)
            .send()
            .await?
            .state;
        if state == *wanted {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{microvm} is {state}, not {wanted}"
        );
        sleep(POLL).await;
    }
}

/// The app behind an endpoint.
struct App {
    address: String,
    token: String,
}

impl App {
    async fn get(&self, path: &str) -> Result<Value> {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "60",
                "--header",
            ])
            .arg(format!("{TOKEN_HEADER}: {}", self.token))
            .arg(format!("https://{}{path}", self.address))
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "curl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}
