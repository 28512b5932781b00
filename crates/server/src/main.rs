//! `dormouse`: the daemon and its command line.

mod acceleration;
mod admission;
mod api;
mod app;
mod assets;
mod audit;
mod aws_names;
mod builds;
mod cache;
mod cli;
mod config;
mod connect;
mod daemon;
mod deletions;
mod dns;
mod doctor;
mod domains;
mod front;
mod headroom;
mod http;
mod keys;
mod metrics;
mod objects;
mod privileges;
mod request_body;
mod retention;
mod s3;
mod sealing;
mod serve;
mod telemetry;
mod throttle;
mod unread;
mod upstreams;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(&cli::Cli::parse())
}
