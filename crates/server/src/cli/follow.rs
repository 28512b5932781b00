//! Following a build from afar, on a terminal or into a file.

use super::client::{Client, segment};
use super::print_bytes;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::io::{self, IsTerminal};
use std::time::Duration;
use tokio::time::{Instant, interval};

/// Seconds that one request waits for more of the log.
const WAIT_S: u64 = 15;
/// How often the line that shows that time passes is drawn.
const TICK: Duration = Duration::from_millis(200);
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// One build of an image's version.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BuildItem {
    pub(super) build_id: String,
}

#[derive(Debug, Deserialize)]
struct Page<T> {
    items: Vec<T>,
    #[serde(rename = "nextToken")]
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageItem {
    image_arn: String,
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionItem {
    image_version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogPiece {
    text: String,
    next_offset: u64,
    build_state: String,
    state_reason: Option<String>,
    is_complete: bool,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeeded,
    Failed(String),
}

/// The ARN of the image that is called so, or that an ARN names.
pub(super) async fn find_image(client: &Client, image: &str) -> Result<Option<String>> {
    if image.starts_with("arn:") {
        return Ok(Some(image.to_owned()));
    }
    let mut query = format!("?nameFilter={}", segment(image));
    loop {
        let path = format!("/2025-09-09/microvm-images{query}");
        let page: Page<ImageItem> = client.get(&path).await?;
        if let Some(found) = page.items.into_iter().find(|found| found.name == image) {
            return Ok(Some(found.image_arn));
        }
        let Some(token) = page.next_token else {
            return Ok(None);
        };
        query = format!(
            "?nameFilter={}&nextToken={}",
            segment(image),
            segment(&token)
        );
    }
}

/// The build of a version; of the newest one where none is named.
pub(super) async fn find_build(
    client: &Client,
    image: &str,
    version: Option<&str>,
) -> Result<String> {
    let versions = format!("/2025-09-09/microvm-images/{}/versions", segment(image));
    let version = match version {
        Some(version) => version.to_owned(),
        None => newest_version(client, &versions).await?,
    };
    let path = format!("{versions}/{}/builds", segment(&version));
    let builds: Page<BuildItem> = client.get(&path).await?;
    let build = builds.items.into_iter().next();
    let build = build.with_context(|| format!("version {version} of {image} has no build"))?;
    Ok(build.build_id)
}

async fn newest_version(client: &Client, path: &str) -> Result<String> {
    let mut newest: Option<String> = None;
    let mut query = String::new();
    loop {
        let page: Page<VersionItem> = client.get(&format!("{path}{query}")).await?;
        for item in page.items {
            let number = |text: &str| text.split('.').next()?.parse::<u32>().ok();
            if newest.as_deref().and_then(number) < number(&item.image_version) {
                newest = Some(item.image_version);
            }
        }
        match page.next_token {
            Some(token) => query = format!("?nextToken={}", segment(&token)),
            None => return newest.context("the image has no version"),
        }
    }
}

/// Prints a build's log; with `follow` until the build ends. None when it has not ended.
pub(super) async fn print_log(
    client: &Client,
    build: &str,
    follow: bool,
) -> Result<Option<Outcome>> {
    let mut screen = Screen::new(follow);
    let mut offset = 0;
    let mut failures = 0;
    loop {
        let wait = if follow { WAIT_S } else { 0 };
        let path = format!(
            "/_dormouse/v1/builds/{}/log?offset={offset}&wait={wait}",
            segment(build)
        );
        let piece = client.get::<LogPiece>(&path);
        let piece = match screen.while_waiting(piece).await {
            Ok(piece) => piece,
            // A daemon that is started again takes its builds up again.
            Err(error) if follow && offset > 0 && failures < ATTEMPTS && is_unreachable(&error) => {
                failures += 1;
                screen.while_waiting(tokio::time::sleep(PAUSE)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        failures = 0;
        screen.print(&piece.text)?;
        let is_stuck = piece.next_offset == offset && piece.text.is_empty();
        offset = piece.next_offset;
        if piece.is_complete {
            screen.clear()?;
            return Ok(Some(match piece.build_state.as_str() {
                "SUCCESSFUL" => Outcome::Succeeded,
                state => Outcome::Failed(piece.state_reason.unwrap_or_else(|| state.to_owned())),
            }));
        }
        if !follow && is_stuck {
            if offset == 0 {
                bail!("the build has not begun: it waits in line");
            }
            return Ok(None);
        }
    }
}

fn is_unreachable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<reqwest::Error>())
}

/// Where the log goes. On a terminal its lines are coloured, and a last line shows that time passes.
struct Screen {
    colours: bool,
    status: bool,
    began: Instant,
    /// The last thing that was begun and has not ended.
    current: String,
    /// What has come of a line whose rest is still to come.
    partial: String,
    is_drawn: bool,
}

impl Screen {
    fn new(follow: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self {
            colours: is_terminal && std::env::var_os("NO_COLOR").is_none(),
            status: is_terminal && follow,
            began: Instant::now(),
            current: "waiting in line".to_owned(),
            partial: String::new(),
            is_drawn: false,
        }
    }

    async fn while_waiting<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut ticks = interval(TICK);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick(), if self.status => {
                    // A terminal that cannot be drawn on is no reason to end.
                    let _ = self.draw();
                }
            }
        }
    }

    fn print(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.clear()?;
        self.partial.push_str(text);
        let whole = self.partial.rfind('\n').map_or(0, |end| end + 1);
        let lines: String = self.partial.drain(..whole).collect();
        let mut out = String::new();
        for line in lines.lines() {
            self.note(line);
            match self.colours.then(|| colour(line)).flatten() {
                Some(colour) => out.push_str(&format!("\u{1b}[{colour}m{line}\u{1b}[0m\n")),
                None => out.push_str(&format!("{line}\n")),
            }
        }
        print_bytes(out.as_bytes())
    }

    /// Remembers what is under way.
    fn note(&mut self, line: &str) {
        if let Some((_, title)) = heading(line) {
            self.current = title.to_owned();
        }
    }

    fn draw(&mut self) -> Result<()> {
        let seconds = self.began.elapsed().as_secs();
        let current: String = self.current.chars().take(60).collect();
        let line = format!(
            "\r\u{1b}[K\u{1b}[2m{}:{:02} {current}\u{1b}[0m",
            seconds / 60,
            seconds % 60
        );
        self.is_drawn = true;
        print_bytes(line.as_bytes())
    }

    fn clear(&mut self) -> Result<()> {
        match std::mem::take(&mut self.is_drawn) {
            true => print_bytes(b"\r\x1b[K"),
            false => Ok(()),
        }
    }
}

/// Number and title of a line as `#4 [2/3] RUN make`.
fn heading(line: &str) -> Option<(&str, &str)> {
    let (number, title) = line.strip_prefix('#')?.split_once(' ')?;
    (title.starts_with('[') && number.bytes().all(|byte| byte.is_ascii_digit()))
        .then_some((number, title))
}

/// The terminal's code for the colour of a line; none for plain output.
fn colour(line: &str) -> Option<&'static str> {
    let said = line.strip_prefix('#').and_then(|line| line.split_once(' '));
    match said {
        Some((_, text)) if text.starts_with("ERROR") => Some("31"),
        Some((_, text)) if text == "CACHED" || text.starts_with("DONE ") => Some("32"),
        _ if heading(line).is_some() => Some("1;34"),
        _ if line.starts_with("ERROR") || line.contains(" | >>> ") => Some("31"),
        _ if line.starts_with("DONE ") => Some("32"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        for (line, expected) in [
            ("#4 [build 2/3] RUN make", Some("1;34")),
            ("#4 0.412 cc -o app", None),
            ("#4 DONE 1.2s", Some("32")),
            ("#4 CACHED", Some("32")),
            ("#4 ERROR: process failed", Some("31")),
            ("   7 | >>> RUN make", Some("31")),
            ("   8 |     CMD x", None),
            ("ERROR: CONTAINER_BUILD_FAILED: x", Some("31")),
            ("#x [y] z", None),
            ("", None),
        ] {
            assert_eq!(colour(line), expected, "{line}");
        }
    }
}
