//! HEALTHCHECK, which is checked and recorded: whether an app is well is for its hooks to tell.

use super::flags::Flags;
use super::instruction::{Command, command};
use super::{DockerfileError, invalid};
use crate::config::Healthcheck;

/// Shortest time that Docker takes, in nanoseconds.
const NS_MIN: u64 = 1_000_000;

pub(super) fn parse(
    line: usize,
    flags: &mut Flags,
    rest: &str,
) -> Result<Healthcheck, DockerfileError> {
    let (kind, arguments) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let arguments = arguments.trim();
    if kind.eq_ignore_ascii_case("NONE") {
        if !arguments.is_empty() {
            return Err(invalid(line, "HEALTHCHECK NONE takes no arguments"));
        }
        return Ok(Healthcheck {
            test: vec!["NONE".to_owned()],
            ..Healthcheck::default()
        });
    }
    if !kind.eq_ignore_ascii_case("CMD") {
        let problem = format!("HEALTHCHECK is followed by CMD or NONE, not by `{kind}`");
        return Err(invalid(line, problem));
    }
    let test = match command(line, arguments)? {
        Command::Exec(words) if !words.is_empty() => {
            std::iter::once("CMD".to_owned()).chain(words).collect()
        }
        Command::Shell(text) if !text.is_empty() => vec!["CMD-SHELL".to_owned(), text],
        Command::Exec(_) | Command::Shell(_) => {
            return Err(invalid(line, "a command is missing after HEALTHCHECK CMD"));
        }
    };
    let mut time = |name: &str| match flags.value(name)? {
        None => Ok(None),
        Some(text) => match nanoseconds(&text) {
            Some(0) => Ok(None),
            Some(time) if time >= NS_MIN => Ok(Some(time)),
            _ => Err(invalid(
                line,
                format!("--{name}={text} is no time of 1ms or more, as in 30s or 1m30s"),
            )),
        },
    };
    let (interval_ns, timeout_ns) = (time("interval")?, time("timeout")?);
    let (start_period_ns, start_interval_ns) = (time("start-period")?, time("start-interval")?);
    let retries = match flags.value("retries")? {
        None => None,
        Some(text) => match text.parse() {
            Ok(0) => None,
            Ok(retries) => Some(retries),
            Err(_) => return Err(invalid(line, format!("--retries={text} is no count"))),
        },
    };
    Ok(Healthcheck {
        test,
        interval_ns,
        timeout_ns,
        start_period_ns,
        start_interval_ns,
        retries,
    })
}

/// A time as Go writes it: numbers, each with its unit.
fn nanoseconds(text: &str) -> Option<u64> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1.0),
        ("us", 1e3),
        ("µs", 1e3),
        ("μs", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 60e9),
        ("h", 3600e9),
    ];
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let unit = UNITS.iter().filter(|(unit, _)| rest.starts_with(unit));
        let (unit, factor) = unit.max_by_key(|(unit, _)| unit.len())?;
        rest = &rest[unit.len()..];
        total += number * factor;
    }
    let fits = !text.is_empty() && total <= i64::MAX as f64;
    fits.then_some(total as u64)
}
