//! What is fetched from one server: manifests, documents and layers, each checked against its digest.

use super::challenge::Challenge;
use super::credentials::Identity;
use super::document::{ACCEPT, Descriptor};
use super::endpoint::Endpoint;
use super::http::{self, Http, HttpError, Question};
use super::progress::{LayerProgress, Progress};
use super::pull::PullError;
use super::reference::ImageRef;
use super::token::Tokens;
use crate::digest::{Digest, Hasher};
use dormouse_core::limits;
use reqwest::header::{
    ACCEPT as ACCEPT_HEADER, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// One server, and all that is needed to ask it.
pub(super) struct Source<'a> {
    pub(super) http: &'a Http,
    pub(super) tokens: &'a Tokens,
    pub(super) endpoint: Endpoint,
    pub(super) identity: Identity,
    pub(super) progress: &'a dyn Progress,
}

/// Name of the header with what a tag stands for.
const DIGEST_HEADER: &str = "docker-content-digest";

impl Source<'_> {
    /// What a tag stands for; none when the server does not say.
    pub(super) async fn digest_of(
        &self,
        reference: &ImageRef,
    ) -> Result<Option<Digest>, PullError> {
        let path = manifest_path(reference);
        let response = self
            .ask(Method::HEAD, reference.repository(), &path, None)
            .await?;
        Ok(digest_header(&response))
    }

    /// The manifest or index of a reference, with its digest.
    pub(super) async fn manifest(
        &self,
        reference: &ImageRef,
    ) -> Result<(Digest, Vec<u8>), PullError> {
        let path = manifest_path(reference);
        let read = self.read(reference.repository(), &path);
        let (said, bytes) = read.await.map_err(|error| naming(error, reference))?;
        let found = Digest::of(&bytes);
        for expected in [reference.digest(), said].into_iter().flatten() {
            self.check(expected, found)?;
        }
        Ok((found, bytes))
    }

    /// A short content, such as an image's configuration.
    pub(super) async fn document(
        &self,
        repository: &str,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, PullError> {
        let (_, bytes) = self.read(repository, &blob_path(descriptor)).await?;
        self.check(descriptor.digest, Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// A whole short answer, and the digest that the server says it has. Asked for anew when it breaks off.
    async fn read(
        &self,
        repository: &str,
        rest: &str,
    ) -> Result<(Option<Digest>, Vec<u8>), PullError> {
        let mut attempt = 1;
        loop {
            let response = self.ask(Method::GET, repository, rest, None).await?;
            let said = digest_header(&response);
            match http::body(response, limits::REGISTRY_DOCUMENT_BYTES_MAX).await {
                Ok(bytes) => return Ok((said, bytes)),
                Err(error @ HttpError::Unreachable { .. })
                    if attempt < limits::REGISTRY_ATTEMPTS =>
                {
                    let pause = http::backoff(attempt);
                    let seconds = pause.as_secs_f64();
                    self.progress
                        .line(&format!("{error}; trying again in {seconds:.1} s"));
                    tokio::time::sleep(pause).await;
                    attempt += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Says that this server did not do, and that the next one is asked.
    pub(super) fn tell_next(&self, error: &PullError) {
        self.progress
            .line(&format!("{error}; asking the next server"));
    }

    /// Asks, proving who we are when the server wants it.
    async fn ask(
        &self,
        method: Method,
        repository: &str,
        rest: &str,
        from: Option<u64>,
    ) -> Result<Response, PullError> {
        let account = &self.endpoint.account;
        let mut question = Question {
            method,
            url: self.endpoint.url(repository, rest),
            headers: HeaderMap::from_iter([(ACCEPT_HEADER, HeaderValue::from_static(ACCEPT))]),
            body: None,
        };
        if let Some(from) = from {
            let range = HeaderValue::from_str(&format!("bytes={from}-"));
            question
                .headers
                .extend(range.ok().map(|range| (RANGE, range)));
        }
        let known = self.tokens.header(account, repository);
        question
            .headers
            .extend(known.map(|header| (AUTHORIZATION, header)));
        let mut response = self.http.ask(&question, self.progress).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges = response.headers().get_all(WWW_AUTHENTICATE).into_iter();
            let challenge = Challenge::parse(challenges.filter_map(|value| value.to_str().ok()));
            let challenge = challenge.ok_or_else(|| self.denied())?;
            let header = self
                .tokens
                .obtain(
                    self.http,
                    &self.identity,
                    account,
                    repository,
                    &challenge,
                    self.progress,
                )
                .await?;
            question.headers.insert(AUTHORIZATION, header);
            response = self.http.ask(&question, self.progress).await?;
        }
        self.judge(response, rest).await
    }

    async fn judge(&self, response: Response, rest: &str) -> Result<Response, PullError> {
        let server = self.endpoint.name().to_owned();
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied()),
            StatusCode::NOT_FOUND => Err(PullError::NotFound {
                server,
                reference: rest.to_owned(),
            }),
            status => {
                let body = http::body(response, limits::REGISTRY_ANSWER_BYTES_MAX).await;
                let said = error_text(&body.unwrap_or_default());
                Err(PullError::Refused {
                    server,
                    status,
                    said,
                })
            }
        }
    }

    fn denied(&self) -> PullError {
        PullError::Denied {
            server: self.endpoint.name().to_owned(),
        }
    }

    fn check(&self, expected: Digest, found: Digest) -> Result<(), PullError> {
        match expected == found {
            true => Ok(()),
            false => Err(PullError::Digest {
                server: self.endpoint.name().to_owned(),
                expected,
                found,
            }),
        }
    }
}

/// Fetches a layer to a file, from the first server that gives it whole.
pub(super) async fn layer(
    sources: &[Source<'_>],
    repository: &str,
    layer: &Descriptor,
    path: PathBuf,
    mut told: LayerProgress<'_>,
) -> Result<(), PullError> {
    for (index, source) in sources.iter().enumerate() {
        match layer_from(source, repository, layer, &path, &mut told).await {
            Ok(()) => {
                told.done();
                return Ok(());
            }
            Err(error @ PullError::Io { .. }) => return Err(error),
            Err(error) if index + 1 < sources.len() => source.tell_next(&error),
            Err(error) => return Err(error),
        }
    }
    Err(PullError::Stopped)
}

/// A layer that is partly here.
struct Partial {
    file: File,
    hasher: Hasher,
    bytes: u64,
}

impl Partial {
    async fn begin(path: &Path) -> Result<Self, PullError> {
        let file = File::create(path)
            .await
            .map_err(io_error("make a file for a layer"))?;
        Ok(Self {
            file,
            hasher: Hasher::default(),
            bytes: 0,
        })
    }
}

/// A connection that breaks is made anew, and goes on where it broke.
async fn layer_from(
    source: &Source<'_>,
    repository: &str,
    layer: &Descriptor,
    path: &Path,
    told: &mut LayerProgress<'_>,
) -> Result<(), PullError> {
    let mut partial = Partial::begin(path).await?;
    let mut attempt = 1;
    loop {
        let from = (partial.bytes > 0).then_some(partial.bytes);
        let response = source
            .ask(Method::GET, repository, &blob_path(layer), from)
            .await?;
        if from.is_some() && response.status() != StatusCode::PARTIAL_CONTENT {
            partial = Partial::begin(path).await?;
        }
        let problem = receive(source, response, layer, &mut partial, told).await?;
        if partial.bytes == layer.size {
            partial
                .file
                .flush()
                .await
                .map_err(io_error("write a layer"))?;
            return source.check(layer.digest, partial.hasher.finish());
        }
        if attempt >= limits::REGISTRY_ATTEMPTS {
            return Err(match problem {
                Some(problem) => HttpError::Unreachable {
                    server: source.endpoint.name().to_owned(),
                    problem,
                }
                .into(),
                None => length_error(source, layer, partial.bytes),
            });
        }
        let pause = http::backoff(attempt);
        let problem = problem.unwrap_or_else(|| "it ended early".to_owned());
        told.tell(&format!(
            "{problem}; trying again in {:.1} s",
            pause.as_secs_f64()
        ));
        tokio::time::sleep(pause).await;
        attempt += 1;
    }
}

/// Takes what comes; answers why no more came, unless the server ended it.
async fn receive(
    source: &Source<'_>,
    mut response: Response,
    layer: &Descriptor,
    partial: &mut Partial,
    told: &mut LayerProgress<'_>,
) -> Result<Option<String>, PullError> {
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(http::cause(&error))),
        };
        let bytes = partial.bytes + chunk.len() as u64;
        if bytes > layer.size {
            return Err(length_error(source, layer, bytes));
        }
        partial
            .file
            .write_all(&chunk)
            .await
            .map_err(io_error("write a layer"))?;
        partial.hasher.update(&chunk);
        partial.bytes = bytes;
        told.at(bytes);
    }
}

fn length_error(source: &Source<'_>, layer: &Descriptor, found: u64) -> PullError {
    PullError::Length {
        server: source.endpoint.name().to_owned(),
        digest: layer.digest,
        expected: layer.size,
        found,
    }
}

fn io_error(action: &'static str) -> impl FnOnce(std::io::Error) -> PullError {
    move |source| PullError::Io { action, source }
}

/// A registry knows paths; people know images.
fn naming(error: PullError, reference: &ImageRef) -> PullError {
    match error {
        PullError::NotFound { server, .. } => PullError::NotFound {
            server,
            reference: reference.to_string(),
        },
        error => error,
    }
}

fn manifest_path(reference: &ImageRef) -> String {
    format!("manifests/{}", reference.version())
}

fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/{}", descriptor.digest)
}

fn digest_header(response: &Response) -> Option<Digest> {
    response
        .headers()
        .get(DIGEST_HEADER)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// A registry's own words for an error, short and printable.
fn error_text(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        message: Option<String>,
    }
    let errors = serde_json::from_slice::<Errors>(body).map(|errors| errors.errors);
    let text = errors
        .unwrap_or_default()
        .into_iter()
        .find_map(|said| said.message);
    let text = text.unwrap_or_default();
    let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    if text.is_empty() {
        text
    } else {
        format!(": {text}")
    }
}
