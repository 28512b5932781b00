//! The daemon's log: to standard error, for people or as JSON.

use crate::audit::AUDIT_LOG;
use crate::config::{LogConfig, LogFormat};
use dormouse_ingress::ACCESS_LOG;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, LevelFilter};

/// Starts logging. `RUST_LOG` chooses what; the default is what an operator wants to know.
pub(crate) fn start(config: LogConfig) {
    let default = format!("info,{}", crate::s3::LOG_DIRECTIVE);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let logs = [(config.access, ACCESS_LOG), (config.audit, AUDIT_LOG)];
    let filter = logs
        .into_iter()
        .fold(filter, |filter, (wanted, log)| match wanted {
            true => filter,
            false => filter.add_directive(silent(log)),
        });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn silent(target: &str) -> Directive {
    let directive = format!("{target}={}", LevelFilter::OFF);
    directive.parse().expect("a target and a level")
}
