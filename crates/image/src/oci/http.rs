//! Requests to registries: bounded, timed, and tried again where that can help.

use super::RegistryConfig;
use super::endpoint::{authority, is_loopback, may_be_plain, names};
use super::progress::Progress;
use super::reach::{self, NotPublic, PublicResolver};
use dormouse_core::limits;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode, Url};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The client cannot be made.
    #[error("cannot trust `{}`", path.display())]
    Authorities {
        /// The file of authorities.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS or the client itself cannot be set up.
    #[error("cannot set up the client: {0}")]
    Setup(String),
    /// No answer comes from the server.
    #[error("{server} cannot be reached: {problem}")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why, without the address that it was asked for: a token may be in it.
        problem: String,
    },
    /// The server has no time for us.
    #[error("{server} answers {status}")]
    Busy {
        /// Its address.
        server: String,
        /// What it answers.
        status: StatusCode,
    },
    /// The answer is longer than such an answer may be.
    #[error("{server} answers with more than {limit} bytes")]
    TooLong {
        /// Its address.
        server: String,
        /// The limit.
        limit: usize,
    },
    /// Something would be said without TLS that must not be.
    #[error(
        "{server} is not spoken to over plain HTTP: list it in registry.plain_http if it may be"
    )]
    Plain {
        /// Its address.
        server: String,
    },
    /// A Dockerfile or a registry leads to where only the operator may.
    #[error(
        "{server} is this host or in a private network: list its host in registry.private if images may come from it"
    )]
    Private {
        /// Its address.
        server: String,
    },
    /// A redirect is not followed.
    #[error("{server} redirects {problem}")]
    Redirect {
        /// Its address.
        server: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An address is none.
    #[error("the registry names an address that is none")]
    Address,
}

/// What is sent.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    /// A form to post.
    pub(super) body: Option<String>,
}

/// The clients of all registries.
#[derive(Debug)]
pub(super) struct Http {
    /// Reaches public addresses only. Through the proxy of the environment, where it names one.
    public: Client,
    /// Reaches any, the same way.
    any: Client,
    /// For this machine.
    direct: Client,
    /// The hosts that may have any address.
    named: BTreeSet<String>,
    plain_http: BTreeSet<String>,
}

impl Http {
    /// Blocking: reads the authorities that are trusted.
    pub(super) fn new(config: &RegistryConfig) -> Result<Self, HttpError> {
        let tls = tls(config)?;
        let client = |builder: reqwest::ClientBuilder| {
            let builder = builder
                .tls_backend_preconfigured(tls.clone())
                .redirect(Policy::none())
                .connect_timeout(limits::REGISTRY_CONNECT_TIMEOUT)
                .read_timeout(limits::REGISTRY_READ_TIMEOUT)
                .http1_only()
                .user_agent(concat!("dormouse/", env!("CARGO_PKG_VERSION")));
            builder
                .build()
                .map_err(|error| HttpError::Setup(cause(&error)))
        };
        Ok(Self {
            public: client(Client::builder().dns_resolver(PublicResolver::new()))?,
            any: client(Client::builder())?,
            direct: client(Client::builder().no_proxy())?,
            named: reach::named(config),
            plain_http: config.plain_http.clone(),
        })
    }

    /// Asks until there is an answer other than "try again"; 401, 404 and the like are answers.
    pub(super) async fn ask(
        &self,
        question: &Question,
        progress: &dyn Progress,
    ) -> Result<Response, HttpError> {
        let url = Url::parse(&question.url).map_err(|_| HttpError::Address)?;
        if url.scheme() != "https"
            && !(url.scheme() == "http" && may_be_plain(&url, &self.plain_http))
        {
            let server = server(&url);
            return Err(HttpError::Plain { server });
        }
        let mut attempt = 1;
        loop {
            let (error, wanted) = match self.send(&url, question).await {
                Ok(response) if is_passing(response.status()) => {
                    let status = response.status();
                    let wanted = retry_after(response.headers());
                    let server = server(response.url());
                    (HttpError::Busy { server, status }, wanted)
                }
                Ok(response) => return Ok(response),
                Err(error @ HttpError::Unreachable { .. }) => (error, None),
                Err(error) => return Err(error),
            };
            // A server that is not there is not waited for as long as one that is busy.
            let attempts = match error {
                HttpError::Busy { .. } => limits::REGISTRY_ATTEMPTS,
                _ => limits::REGISTRY_CONNECT_ATTEMPTS,
            };
            if attempt >= attempts {
                return Err(error);
            }
            let pause = wanted
                .unwrap_or_else(|| backoff(attempt))
                .min(limits::REGISTRY_BACKOFF_MAX);
            progress.line(&format!(
                "{error}; trying again in {:.1} s",
                pause.as_secs_f64()
            ));
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// Sends a question, and follows redirects: each address is judged like the first.
    async fn send(&self, url: &Url, question: &Question) -> Result<Response, HttpError> {
        let mut url = url.clone();
        let mut headers = question.headers.clone();
        for _ in 0..=limits::REGISTRY_REDIRECTS_MAX {
            let response = self.send_to(&url, question, &headers).await?;
            let next = match location(&url, &response) {
                // What is posted is a secret of ours, for nobody else.
                Some(next) if question.method != Method::POST => next?,
                _ => return Ok(response),
            };
            self.check_redirect(&url, &next)?;
            if server(&url) != server(&next) {
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        let (server, problem) = (server(&url), "too often");
        Err(HttpError::Redirect { server, problem })
    }

    async fn send_to(
        &self,
        url: &Url,
        question: &Question,
        headers: &HeaderMap,
    ) -> Result<Response, HttpError> {
        let request = self
            .client(url)?
            .request(question.method.clone(), url.clone())
            .headers(headers.clone());
        let request = match &question.body {
            Some(body) => request.body(body.clone()),
            None => request,
        };
        request.send().await.map_err(|error| {
            let (server, problem) = (server(url), cause(&error));
            match is_not_public(&error) {
                true => HttpError::Private { server },
                false => HttpError::Unreachable { server, problem },
            }
        })
    }

    /// The client that may go where this address leads.
    fn client(&self, url: &Url) -> Result<&Client, HttpError> {
        let authority = authority(url);
        match names(&self.named, url.scheme(), &authority) {
            true if is_loopback(&authority) => Ok(&self.direct),
            true => Ok(&self.any),
            false if reach::is_private(&authority) => {
                let server = server(url);
                Err(HttpError::Private { server })
            }
            false => Ok(&self.public),
        }
    }

    /// From TLS never to plain HTTP, and over plain HTTP only to where it is allowed.
    fn check_redirect(&self, from: &Url, to: &Url) -> Result<(), HttpError> {
        let allowed = match to.scheme() {
            "https" => true,
            "http" => from.scheme() == "http" && may_be_plain(to, &self.plain_http),
            _ => false,
        };
        let (server, problem) = (server(from), "to plain HTTP");
        allowed
            .then_some(())
            .ok_or(HttpError::Redirect { server, problem })
    }
}

/// Reads a short answer.
pub(super) async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, HttpError> {
    let server = authority(response.url());
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len() + chunk.len() <= limit => body.extend_from_slice(&chunk),
            Ok(Some(_)) => return Err(HttpError::TooLong { server, limit }),
            Err(error) => {
                let problem = cause(&error);
                return Err(HttpError::Unreachable { server, problem });
            }
        }
    }
}

/// A pause that grows with each attempt, and differs between those that wait for the same server.
pub(super) fn backoff(attempt: u32) -> Duration {
    let base = limits::REGISTRY_BACKOFF * 2_u32.saturating_pow(attempt.saturating_sub(1).min(10));
    let [byte, ..] = uuid::Uuid::new_v4().into_bytes();
    base.mul_f64(0.75 + f64::from(byte) / 512.0)
}

/// What an error comes from, without the address that the request was for.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut text = None;
    while let Some(error) = source {
        text = Some(error.to_string());
        source = error.source();
    }
    let text = text.unwrap_or_else(|| {
        if error.is_timeout() {
            "timed out"
        } else {
            "no answer"
        }
        .to_owned()
    });
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn is_not_public(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<NotPublic>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers
        .get(RETRY_AFTER)
        .and_then(|value: &HeaderValue| value.to_str().ok())?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Where an answer sends us on to.
fn location(from: &Url, response: &Response) -> Option<Result<Url, HttpError>> {
    let is_redirect = matches!(
        response.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let location = response.headers().get(LOCATION).filter(|_| is_redirect)?;
    let url = location.to_str().ok().and_then(|text| from.join(text).ok());
    Some(url.ok_or(HttpError::Address))
}

/// Scheme, host and port, for people.
fn server(url: &Url) -> String {
    format!("{}://{}", url.scheme(), authority(url))
}

fn tls(config: &RegistryConfig) -> Result<rustls::ClientConfig, HttpError> {
    let mut roots = RootCertStore::empty();
    // Some system's bundle always has an entry that cannot be read; without any, TLS fails with its own words.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &config.extra_ca_file {
        let failed = |source: io::Error| HttpError::Authorities {
            path: path.clone(),
            source,
        };
        let pem = std::fs::read(path).map_err(failed)?;
        let mut count = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate =
                certificate.map_err(|error| failed(io::Error::other(error.to_string())))?;
            roots
                .add(certificate)
                .map_err(|error| failed(io::Error::other(error.to_string())))?;
            count += 1;
        }
        if count == 0 {
            return Err(failed(io::Error::other("it has no certificate")));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| HttpError::Setup(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A server on loopback that gives these answers, one to a connection; its authority.
    fn server_of(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        authority
    }

    fn redirect(to: &str) -> String {
        format!(
            "HTTP/1.1 307 Moved\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    }

    async fn ask(named: &[&str], url: &str) -> Result<StatusCode, HttpError> {
        let config = RegistryConfig {
            private: named.iter().map(|name| (*name).to_owned()).collect(),
            ..RegistryConfig::default()
        };
        let question = Question {
            method: Method::GET,
            url: url.to_owned(),
            headers: HeaderMap::new(),
            body: None,
        };
        let progress = |_: &str| {};
        let answer = Http::new(&config).unwrap().ask(&question, &progress).await;
        answer.map(|response| response.status())
    }

    fn is_private(result: &Result<StatusCode, HttpError>, authority: &str) -> bool {
        matches!(result, Err(HttpError::Private { server }) if server.ends_with(authority))
    }

    #[tokio::test]
    async fn only_what_the_configuration_names_is_reached_on_this_host() {
        let found = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let other = server_of(vec![found.to_owned()]);
        let to_other = redirect(&format!("http://{other}/"));
        let first = server_of(vec![to_other.clone(), to_other]);
        let url = format!("http://{first}/v2/");
        assert!(is_private(&ask(&[], &url).await, &first));
        assert!(is_private(&ask(&[&first], &url).await, &other));
        let reached = ask(&[&first, &other], &url).await;
        assert_eq!(reached.unwrap(), StatusCode::OK);
        for url in ["https://localhost/v2/", "https://169.254.169.254/v2/"] {
            let refused = ask(&[], url).await;
            assert!(matches!(refused, Err(HttpError::Private { .. })), "{url}");
        }
    }

    #[tokio::test]
    async fn redirects_end() {
        let circle = vec![redirect("/again"); limits::REGISTRY_REDIRECTS_MAX + 1];
        let server = server_of(circle);
        let result = ask(&[&server], &format!("http://{server}/")).await;
        assert!(
            matches!(result, Err(HttpError::Redirect { .. })),
            "{result:?}"
        );
        let server = server_of(vec![redirect("ftp://example.com/")]);
        let result = ask(&[&server], &format!("http://{server}/")).await;
        assert!(
            matches!(result, Err(HttpError::Redirect { .. })),
            "{result:?}"
        );
    }
}
