//! `dormouse`: the daemon and its command line.

mod acceleration;
mod admission;
mod api;
mod app;
mod assets;
mod builds;
mod cache;
mod cli;
mod config;
mod daemon;
mod deletions;
mod doctor;
mod http;
mod keys;
mod metrics;
mod objects;
mod retention;
mod s3;
mod serve;
mod telemetry;
mod throttle;
mod upstreams;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(&cli::Cli::parse())
}
