//! The command line: `dormouse COMMAND`.

mod client;
mod domain;
mod env;
mod follow;
mod image_build;
mod key;
mod logs;
mod shell;
mod system;
mod table;
mod upload;
mod vms;

use crate::config::{Config, Overrides, ServeOverrides};
use crate::{doctor, privileges, serve};
use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use client::Endpoint;
use dormouse_core::{AccountId, limits};
use dormouse_image::{LocalImages, oci};
use dormouse_node::layout::Layout;
use env::Way;
use std::io::{self, Write};
use std::path::PathBuf;
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
    Env {
        /// Account whose oldest access key to use [default: the daemon's own]
        #[arg(long, value_parser = key::account)]
        account: Option<AccountId>,
        /// Reach the daemon under AWS's own host names, through its CONNECT listener, without AWS_ENDPOINT_URL
        ///
        /// Sets HTTPS_PROXY, through which this shell reaches no other host, and AWS_CA_BUNDLE.
        #[arg(long)]
        proxy: bool,
    },
    /// Make, list and delete access keys, and with them accounts
    #[command(subcommand)]
    Key(key::KeyCommand),
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
    /// Build images, and work with the base images of this host
    #[command(subcommand)]
    Image(ImageCommand),
    /// Launch a microVM of an image, and say how to talk to it
    Run(vms::RunArgs),
    /// List the microVMs
    #[command(visible_alias = "ps")]
    Ls {
        /// Those that have ended, too
        #[arg(long, short)]
        all: bool,
    },
    /// Open a shell in a microVM, or run a command in it
    ///
    /// The shell is root's, in the app's environment. It has a terminal where standard input and output are one;
    /// else bytes pass as they are, as in: tar c . | dormouse shell ID -- tar x -C /tmp. Its exit status becomes
    /// ours, or 255 when there was no shell. At the beginning of a line ~. disconnects.
    Shell(shell::ShellArgs),
    /// End microVMs
    Terminate {
        /// Their ids
        #[arg(required = true, value_name = "MICROVM")]
        ids: Vec<String>,
    },
    /// Give a microVM host names of its own
    #[command(subcommand)]
    Domain(domain::DomainCommand),
    /// See what takes disk space, and give back what nothing needs
    #[command(subcommand)]
    System(system::SystemCommand),
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Build an image of a folder with a Dockerfile, and follow the build
    ///
    /// Packs the folder without what its .dockerignore lists, puts it into S3, and creates the image or a new
    /// version of it through the API: of the daemon that AWS_ENDPOINT_URL names (see `dormouse env`), or of
    /// this host's.
    Build(image_build::BuildArgs),
    /// Make a base image from an OCI layout, a `docker save` archive, or the tar of a root file system
    Import {
        /// How a Dockerfile names it, as in localhost/debian:12
        #[arg(long)]
        name: String,
        /// A tar, packed or not, or the folder of an OCI layout
        file: PathBuf,
    },
    /// Pull a base image from a registry, or bring the one that is here up to date
    Pull {
        /// How a Dockerfile names it, as in debian:12
        reference: String,
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
        Command::Serve(serve) => {
            let config = Config::load(over, serve)?;
            // Before the runtime has its threads.
            privileges::reduce()?;
            block_on(serve::run(config))?;
        }
        Command::Doctor(serve) => return block_on(doctor::run(&Config::load(over, serve)?)),
        Command::Env { account, proxy } => {
            let config = Config::load(over, &unserved)?;
            let way = if *proxy { Way::Proxy } else { Way::Endpoint };
            print(&env::exports(&config, account.as_ref(), way)?)?;
        }
        Command::Key(command) => key::run(&Config::load(over, &unserved)?, command)?,
        Command::Run(args) => return block_on(vms::run(over, args)),
        Command::Ls { all } => return block_on(vms::list(over, *all)),
        Command::Shell(args) => return block_on(async { Ok(shell::run(over, args).await) }),
        Command::Terminate { ids } => return block_on(vms::terminate(over, ids)),
        Command::Domain(command) => return block_on(domain::run(over, command)),
        Command::System(command) => return block_on(system::run(over, command)),
        Command::Image(ImageCommand::Build(args)) => {
            return block_on(image_build::run(over, args));
        }
        Command::Logs { image, follow } if Endpoint::is_remote(over) => {
            block_on(logs::show_remote(over, image, *follow))?;
        }
        Command::Logs { image, follow } => {
            block_on(logs::show(&Config::load(over, &unserved)?, image, *follow))?;
        }
        Command::Image(command) => image(&Config::load(over, &unserved)?, command)?,
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

fn image(config: &Config, command: &ImageCommand) -> Result<()> {
    let layout = Layout::new(&config.data_dir);
    layout
        .create()
        .with_context(|| format!("make {}", config.data_dir.display()))?;
    let images = LocalImages::open(&layout.images())?;
    match command {
        ImageCommand::Build(_) => bail!("a build needs a daemon"),
        ImageCommand::Import { name, file } => {
            let disk_bytes = limits::disk_bytes(limits::MEMORY_DEFAULT_MIB);
            let image = oci::import(&images, name, file, disk_bytes)?;
            print(&format!("{}  {}\n", image.reference, image.digest))
        }
        ImageCommand::Pull { reference } => {
            let bases = config.base_images.clone().asked_for(reference);
            let bases = bases.images(images);
            let progress = |line: &str| drop(writeln!(io::stderr(), "{line}"));
            let pulled = async { Ok(bases.resolve(reference, &progress).await?) };
            let image = block_on(pulled)?;
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
    use std::path::Path;

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
