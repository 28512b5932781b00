//! `dormouse run`, `ls` and `terminate`: a MicroVM's life in three commands.

use super::client::{Client, segment};
use super::follow::find_image;
use super::print;
use super::table::table;
use crate::config::Overrides;
use anyhow::{Context, Result, bail};
use clap::Args;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const MICROVMS: &str = "/2025-09-09/microvms";
const POLL: Duration = Duration::from_millis(200);
/// A launch that takes longer than this is reported as it stands.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(120);
const TOKEN_MINUTES: u32 = 60;

/// What to launch.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Name or ARN of the image
    image: String,
    /// Version of the image [default: the newest active one]
    #[arg(long)]
    version: Option<String>,
    /// Put it to sleep after so many seconds without traffic; the next request wakes it
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u32>,
    /// End it after so many seconds asleep
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 3600,
        requires = "idle"
    )]
    suspended: u32,
    /// Port that the printed curl command asks for
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Let shells in as well as requests: see `dormouse shell`
    #[arg(long)]
    shell: bool,
    /// Print the MicroVM's id alone, and do not wait
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Microvm {
    microvm_id: String,
    state: String,
    #[serde(default)]
    endpoint: String,
    state_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    microvm_id: String,
    state: String,
    image_arn: String,
    image_version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    items: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    auth_token: Value,
}

/// Launches, waits until it runs, and says how to talk to it.
pub(super) async fn run(over: &Overrides, args: &RunArgs) -> Result<ExitCode> {
    let client = Client::connect(over)?;
    let image = find_image(&client, &args.image).await?;
    let image = image.with_context(|| format!("there is no image {}", args.image))?;
    let mut request = json!({ "imageIdentifier": image });
    if let Some(version) = &args.version {
        request["imageVersion"] = json!(version);
    }
    if args.shell {
        let arns = ["HTTP_INGRESS", "SHELL_INGRESS"].map(|name| connector(&client, name));
        request["ingressNetworkConnectors"] = json!(arns);
    }
    if let Some(idle) = args.idle {
        request["idlePolicy"] = json!({
            "maxIdleDurationSeconds": idle,
            "suspendedDurationSeconds": args.suspended,
            "autoResumeEnabled": true,
        });
    }
    let vm: Microvm = client.call(Method::POST, MICROVMS, Some(&request)).await?;
    if args.quiet {
        print(&format!("{}\n", vm.microvm_id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let vm = wait_until_running(&client, vm).await?;
    let path = format!("{MICROVMS}/{}/auth-token", segment(&vm.microvm_id));
    let grant =
        json!({ "expirationInMinutes": TOKEN_MINUTES, "allowedPorts": [{ "allPorts": {} }] });
    let token: Token = client.call(Method::POST, &path, Some(&grant)).await?;
    let token = token.auth_token["X-aws-proxy-auth"].as_str();
    let token = token.context("the token has another form than expected")?;
    let port = match args.port {
        8080 => String::new(),
        port => format!(" \\\n    -H 'X-aws-proxy-port: {port}'"),
    };
    let shell = match args.shell {
        true => format!("Open a shell: dormouse shell {}\n", vm.microvm_id),
        false => String::new(),
    };
    print(&format!(
        "{id}  {state}\n\n\
         Talk to it (the token is good for {TOKEN_MINUTES} minutes):\n  \
         curl https://{endpoint}/{port} \\\n    -H 'X-aws-proxy-auth: {token}'\n\n\
         {shell}End it: dormouse terminate {id}\n",
        id = vm.microvm_id,
        state = vm.state,
        endpoint = vm.endpoint,
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// ARN of a managed network connector.
fn connector(client: &Client, name: &str) -> String {
    let region = &client.endpoint.region;
    format!("arn:aws:lambda:{region}:aws:network-connector:aws-network-connector:{name}")
}

async fn wait_until_running(client: &Client, vm: Microvm) -> Result<Microvm> {
    let deadline = Instant::now() + LAUNCH_TIMEOUT;
    let path = format!("{MICROVMS}/{}", segment(&vm.microvm_id));
    let mut vm = vm;
    while vm.state == "PENDING" && Instant::now() < deadline {
        sleep(POLL).await;
        vm = client.get(&path).await?;
    }
    if vm.state == "RUNNING" {
        return Ok(vm);
    }
    let reason = vm.state_reason.unwrap_or_default();
    bail!("{} is {}: {reason}", vm.microvm_id, vm.state)
}

/// Lists MicroVMs, those that have ended only when asked to.
pub(super) async fn list(over: &Overrides, all: bool) -> Result<ExitCode> {
    let client = Client::connect(over)?;
    let mut rows = vec![
        ["MICROVM", "STATE", "IMAGE", "VERSION"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut path = MICROVMS.to_owned();
    loop {
        let page: Page = client.get(&path).await?;
        for item in page.items {
            if all || item.state != "TERMINATED" {
                let name = item
                    .image_arn
                    .rsplit(':')
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                rows.push(vec![item.microvm_id, item.state, name, item.image_version]);
            }
        }
        match page.next_token {
            Some(token) => path = format!("{MICROVMS}?nextToken={}", segment(&token)),
            None => break,
        }
    }
    print(&table(&rows))?;
    Ok(ExitCode::SUCCESS)
}

/// Ends MicroVMs, and says which it could not end.
pub(super) async fn terminate(over: &Overrides, ids: &[String]) -> Result<ExitCode> {
    terminate_each(&Client::connect(over)?, ids).await
}

async fn terminate_each(client: &Client, ids: &[String]) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        let path = format!("{MICROVMS}/{}", segment(id));
        let ended: Result<Value> = client.call(Method::DELETE, &path, None::<&()>).await;
        match ended {
            Ok(_) => print(&format!("{id}\n"))?,
            Err(error) => {
                code = ExitCode::FAILURE;
                // When standard error is gone, the exit status must do.
                let _ = writeln!(io::stderr(), "dormouse: {id}: {error:#}");
            }
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::super::client::Endpoint;
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A daemon that has no MicroVM but one; notes the paths that it is asked for.
    async fn serve(listener: TcpListener, only: &str, paths: Arc<Mutex<Vec<String>>>) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let status = match path.ends_with(only) {
                true => "200 OK",
                false => "404 Not Found",
            };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
            paths.lock().unwrap().push(path);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn one_that_cannot_be_ended_keeps_no_other_from_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint {
            url: format!("http://{}", listener.local_addr().unwrap()),
            region: "us-east-1".to_owned(),
            access_key_id: "AKIA".to_owned(),
            secret: "secret".to_owned().into(),
            is_local: true,
            ca_file: None,
            ingress: None,
        };
        let client = Client::new(endpoint).unwrap();
        let ids = ["a", "b"].map(str::to_owned);
        let paths = Arc::default();
        let daemon = tokio::spawn(serve(listener, "/b", Arc::clone(&paths)));
        let code = terminate_each(&client, &ids).await.unwrap();
        assert_eq!(code, ExitCode::FAILURE);
        daemon.abort();
        assert_eq!(
            *paths.lock().unwrap(),
            ids.map(|id| format!("{MICROVMS}/{id}"))
        );
    }
}
