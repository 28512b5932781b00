//! `dormouse shell`: a shell in a MicroVM, as `ssh` gives one on a host.

mod connection;
mod escape;
mod session;
mod terminal;

use super::client::{Client, Refused, segment};
use crate::config::Overrides;
use anyhow::{Context, Error, Result, anyhow, bail};
use clap::Args;
use connection::Gateway;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use session::{End, Input, Session};
use std::io::{self, Write};
use std::process::ExitCode;
use terminal::Terminal;

/// The exit status when there is no shell that could have one, as of ssh.
const NO_SHELL: u8 = 255;
const TOKEN_MINUTES: u32 = 5;
/// Control characters by which a person says that no new shell is wanted: Ctrl-C and Ctrl-D.
const NO: [u8; 2] = [3, 4];

/// Which shell to open.
#[derive(Debug, Args)]
pub(super) struct ShellArgs {
    /// Id of the MicroVM
    id: String,
    /// What to run instead of a shell for people: words that the shell in the MicroVM takes as one line
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Microvm {
    endpoint: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    auth_token: AuthToken,
}

#[derive(Deserialize)]
struct AuthToken {
    #[serde(rename = "X-aws-proxy-auth")]
    jwe: String,
}

impl std::fmt::Debug for AuthToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthToken")
    }
}

/// Opens a shell; its exit status becomes ours.
pub(super) async fn run(over: &Overrides, args: &ShellArgs) -> ExitCode {
    match serve(over, args).await {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let _ = writeln!(io::stderr(), "dormouse: {error:#}");
            ExitCode::from(NO_SHELL)
        }
    }
}

async fn serve(over: &Overrides, args: &ShellArgs) -> Result<u8> {
    let client = Client::connect(over)?;
    let gateway = Gateway::new(&client.endpoint)?;
    let command = (!args.command.is_empty()).then(|| args.command.join(" "));
    let terminal = Terminal::find();
    let mut input = Input::start(terminal.is_some())?;
    loop {
        let target = target(command.as_deref(), terminal.as_ref());
        let (host, token) = admission(&client, &args.id).await?;
        let websocket = gateway.open(&host, &target, &token).await?;
        let raw = terminal.as_ref().map(Terminal::make_raw).transpose()?;
        let session = Session {
            websocket,
            input: &mut input,
            terminal: terminal.as_ref(),
        };
        match session.run().await? {
            End::Exited(code) => return Ok(code.to_le_bytes()[0]),
            End::Signal(number) => return Ok(128u8.saturating_add(number)),
            End::Disconnected => {
                drop(raw);
                tell(&format!("\nDisconnected from {}.\n", args.id))?;
                return Ok(NO_SHELL);
            }
            // An idle shell lets its MicroVM sleep: only a person wakes it again.
            End::Slept if raw.is_some() && command.is_none() => {
                tell("\r\n-- the microVM slept; press a key for a new shell --\r\n")?;
                if !is_wanted(&mut input).await {
                    return Ok(NO_SHELL);
                }
                tell("-- new shell --\r\n")?;
            }
            End::Slept => bail!("{} went to sleep, or ended", args.id),
        }
    }
}

/// Whether a person wants to go on.
async fn is_wanted(input: &mut Input) -> bool {
    let typed = tokio::select! {
        typed = input.next() => typed,
        _ = session::signal() => None,
    };
    typed.is_some_and(|typed| !typed.iter().any(|byte| NO.contains(byte)))
}

/// The MicroVM's host and a token for its shell.
async fn admission(client: &Client, id: &str) -> Result<(String, String)> {
    let path = format!("/2025-09-09/microvms/{}", segment(id));
    let vm: Microvm = client.get(&path).await?;
    let path = format!("{path}/shell-auth-token");
    let grant = json!({ "expirationInMinutes": TOKEN_MINUTES });
    let token = client.call::<Token>(Method::POST, &path, Some(&grant));
    let token = token.await.map_err(with_hint)?;
    Ok((vm.endpoint, token.auth_token.jwe))
}

/// Says what to do about a MicroVM that lets no shell in.
fn with_hint(error: Error) -> Error {
    let refused = error.downcast_ref::<Refused>();
    if refused.is_some_and(|refused| refused.to_string().contains("SHELL_INGRESS")) {
        return anyhow!("{error:#} Launch one with `dormouse run --shell IMAGE`.");
    }
    error
}

/// What is asked for beyond what AWS's shells have.
fn target(command: Option<&str>, terminal: Option<&Terminal>) -> String {
    let mut target = "/?dormouse-exit-code=true".to_owned();
    match terminal.map(Terminal::size) {
        Some((cols, rows)) => target.push_str(&format!("&dormouse-size={cols}x{rows}")),
        None => target.push_str("&dormouse-terminal=false"),
    }
    if let Some(command) = command {
        target.push_str(&format!("&dormouse-command={}", segment(command)));
    }
    target
}

/// Writes to standard error.
fn tell(text: &str) -> Result<()> {
    let mut err = io::stderr();
    err.write_all(text.as_bytes()).context("tell the user")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_line_in_the_target() {
        assert_eq!(
            target(Some("echo λ & ls -l"), None),
            "/?dormouse-exit-code=true&dormouse-terminal=false\
             &dormouse-command=echo%20%CE%BB%20%26%20ls%20-l"
        );
    }

    #[test]
    fn a_token_is_in_no_debug() {
        let token = AuthToken {
            jwe: "secret".to_owned(),
        };
        assert_eq!(format!("{token:?}"), "AuthToken");
    }
}
