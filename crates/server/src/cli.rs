//! The command line: `dormouse COMMAND`.

mod env;
mod logs;

use crate::config::{Config, Overrides, ServeOverrides};
use crate::{doctor, serve};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use dormouse_core::limits;
use dormouse_image::{ImageConfig, LocalImages};
use dormouse_node::layout::Layout;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Run each user session or AI agent in its own microVM, with the AWS Lambda MicroVMs API
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    overrides: Overrides,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: control API, S3, ingress and this host's microVMs
    Serve(ServeOverrides),
    /// Print the exports that point the AWS CLI, SDKs and curl at the daemon
    ///
    /// Use it as: eval "$(dormouse env)"
    ///
    /// AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_DEFAULT_REGION make the
    /// AWS CLI and every SDK talk to the daemon. CURL_CA_BUNDLE (curl), REQUESTS_CA_BUNDLE (Python requests)
    /// and SSL_CERT_FILE (OpenSSL and others) replace the system's CAs, so they name a bundle of those and
    /// the daemon's own. NODE_EXTRA_CA_CERTS (Node.js) adds to them, so it names the daemon's CA alone, as
    /// does DORMOUSE_CA_FILE, for everything else.
    Env,
    /// Check everything that the daemon needs, and say what to do about what is missing
    Doctor(ServeOverrides),
    /// Print the log of an image's newest build
    Logs {
        /// Name or ARN of the image
        image: String,
        /// Go on until the build ends
        #[arg(long, short)]
        follow: bool,
    },
    /// Work with the base images of this host
    #[command(subcommand)]
    Image(ImageCommand),
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make a base image from the tar of a root file system
    Import {
        /// How a Dockerfile names it, as in localhost/debian:12
        #[arg(long)]
        name: String,
        /// The tar
        file: PathBuf,
    },
    /// List the base images
    List,
}

/// Carries out the command. An error has been told when this returns.
pub(crate) fn run(cli: &Cli) -> ExitCode {
    match dispatch(cli) {
        Ok(code) => code,
        // Who reads our output has had enough, as in `dormouse logs app | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // When standard error is gone too, the exit status must do.
            let _ = writeln!(io::stderr(), "dormouse: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    let over = &cli.overrides;
    let unserved = ServeOverrides::default();
    match &cli.command {
        Command::Serve(serve) => block_on(serve::run(Config::load(over, serve)?))?,
        Command::Doctor(serve) => return block_on(doctor::run(&Config::load(over, serve)?)),
        Command::Env => print(&env::exports(&Config::load(over, &unserved)?.data_dir)?)?,
        Command::Logs { image, follow } => {
            block_on(logs::show(&Config::load(over, &unserved)?, image, *follow))?;
        }
        Command::Image(command) => image(&Config::load(over, &unserved)?.data_dir, command)?,
        Command::Version => print(&format!("dormouse {}\n", env!("CARGO_PKG_VERSION")))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?
        .block_on(work)
}

fn image(data_dir: &Path, command: &ImageCommand) -> Result<()> {
    let layout = Layout::new(data_dir);
    layout
        .create()
        .with_context(|| format!("make {}", data_dir.display()))?;
    let images = LocalImages::open(&layout.images())?;
    match command {
        ImageCommand::Import { name, file } => {
            let disk_bytes = limits::disk_bytes(limits::MEMORY_DEFAULT_MIB);
            let image = images.import_rootfs_tar(name, file, ImageConfig::bare(), disk_bytes)?;
            print(&format!("{}  {}\n", image.reference, image.digest))
        }
        ImageCommand::List => {
            let lines = images.list()?.into_iter();
            let lines: String = lines
                .map(|image| format!("{}  {}\n", image.reference, image.digest))
                .collect();
            print(&lines)
        }
    }
}

/// Writes to standard output. Unlike `print!`, which panics when nobody reads it any more.
pub(crate) fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_data_directory_may_come_before_or_after_the_command() {
        for line in ["dormouse --data-dir /d env", "dormouse env --data-dir /d"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(
                cli.overrides.data_dir.as_deref(),
                Some(Path::new("/d")),
                "{line}"
            );
        }
    }
}
