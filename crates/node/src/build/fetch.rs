//! ADD of a URL. What is asked for is the customer's choice, so every connection is opened inside the build
//! VM: its packet filter decides what can be reached, never the host's own reach. The host speaks HTTP
//! and TLS over those connections and looks at nothing but the head of an answer.

mod proxy;
mod tls;

use super::stages::Build;
use crate::guest::{Guest, GuestError};
use crate::vmm::Stream;
use aws_lc_rs::digest;
use bytes::Bytes;
use dormouse_core::limits;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use proxy::Proxy;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL, or one that it leads to, is none that can be fetched.
    #[error("`{0}` is no URL that can be fetched")]
    Url(String),
    /// A proxy's address makes no sense.
    #[error("the proxy of the build is not of the form http://HOST:PORT")]
    Proxy,
    /// The proxy does not connect.
    #[error("the proxy answers {0}")]
    ProxyRefused(StatusCode),
    /// The server's name has no IPv4 address.
    #[error("{host} has no address")]
    NoAddress {
        /// Its name.
        host: String,
        /// What the resolver says.
        #[source]
        source: std::io::Error,
    },
    /// The build VM reaches no server there.
    #[error("cannot connect to {host}")]
    Connect {
        /// Its name.
        host: String,
        /// Why.
        #[source]
        source: GuestError,
    },
    /// There is no TLS with the server.
    #[error("TLS with {host}")]
    Tls {
        /// Its name.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The exchange broke off.
    #[error("the exchange broke off")]
    Http(#[from] hyper::Error),
    /// The server says no.
    #[error("the server answers {0}")]
    Status(StatusCode),
    /// It leads to another place over and over.
    #[error("there are more than {max} redirects")]
    Redirects {
        /// The limit.
        max: usize,
    },
    /// The file is too large.
    #[error("the file is larger than {max} bytes")]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// The server was silent too long.
    #[error("the server made no progress for {limit_s} s")]
    TimedOut {
        /// The limit in seconds.
        limit_s: u64,
    },
    /// The host cannot keep the file.
    #[error("cannot keep the file")]
    Keep(#[source] std::io::Error),
}

/// A file that was fetched.
#[derive(Debug)]
pub(super) struct Fetched {
    /// SHA-256 of its bytes, in hex.
    pub(super) sha256: String,
    /// When it last changed, as the server says, in seconds since the Unix epoch; zero otherwise.
    pub(super) modified_s: u64,
}

/// Fetches `url` into the file `to`.
pub(super) async fn fetch(
    build: Build<'_>,
    guest: Guest<'_>,
    url: &str,
    to: &Path,
) -> Result<Fetched, FetchError> {
    let job = build.job;
    let extra_cas = job.extra_cas.as_ref().map(|cas| cas.pem.clone());
    let client = Client {
        guest,
        tls: tls::Connector::new(extra_cas).await,
        build_args: &job.build_args,
    };
    let mut uri = absolute(url)?;
    for _ in 0..=limits::BUILD_FETCH_REDIRECTS_MAX {
        let response = progress(client.get(&uri)).await??;
        if let Some(next) = redirect(&uri, &response)? {
            uri = next;
            continue;
        }
        return match response.status() {
            StatusCode::OK => keep(response, to).await,
            status => Err(FetchError::Status(status)),
        };
    }
    let max = limits::BUILD_FETCH_REDIRECTS_MAX;
    Err(FetchError::Redirects { max })
}

struct Client<'c> {
    guest: Guest<'c>,
    tls: tls::Connector,
    build_args: &'c std::collections::BTreeMap<String, String>,
}

impl Client<'_> {
    /// Sends one request, on a connection of its own.
    async fn get(&self, uri: &Uri) -> Result<Response<Incoming>, FetchError> {
        let (host, port) = server(uri)?;
        let is_tls = uri.scheme_str() == Some("https");
        let proxy = Proxy::of(self.build_args, uri)?;
        let mut request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(
                header::HOST,
                uri.authority().map_or(host, |authority| authority.as_str()),
            )
            .header(
                header::USER_AGENT,
                concat!("dormouse/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::ACCEPT, "*/*");
        let stream = match &proxy {
            None => self.dial(host, port).await?,
            Some(proxy) => {
                let stream = self.dial(&proxy.host, proxy.port).await?;
                if is_tls {
                    proxy.tunnel(stream, host, port).await?
                } else {
                    request = request.uri(uri.clone());
                    if let Some(credentials) = &proxy.authorization {
                        request = request.header(header::PROXY_AUTHORIZATION, credentials.clone());
                    }
                    stream
                }
            }
        };
        let stream = if is_tls {
            self.tls.connect(host, stream).await?
        } else {
            stream
        };
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|_| FetchError::Url(uri.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
            .max_headers(limits::HTTP_HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        // Ends by itself with the exchange.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender.send_request(request).await?)
    }

    /// Connects from inside the guest. The name is looked up here: what may be reached under it is for
    /// the guest's packet filter to say.
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Stream>, FetchError> {
        let no_address = |source| FetchError::NoAddress {
            host: host.to_owned(),
            source,
        };
        let found = tokio::net::lookup_host((host, port)).await;
        let addresses: Vec<SocketAddrV4> = found
            .map_err(no_address)?
            .filter_map(|address| match address {
                SocketAddr::V4(address) => Some(address),
                SocketAddr::V6(_) => None,
            })
            .collect();
        let mut last = None;
        for address in addresses {
            match self.guest.dial(address).await {
                Ok(stream) => return Ok(stream),
                Err(source) => last = Some(source),
            }
        }
        match last {
            Some(source) => Err(FetchError::Connect {
                host: host.to_owned(),
                source,
            }),
            None => Err(no_address(std::io::ErrorKind::AddrNotAvailable.into())),
        }
    }
}

/// Where an answer leads, if it leads elsewhere.
fn redirect(from: &Uri, response: &Response<Incoming>) -> Result<Option<Uri>, FetchError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok());
    let location = location.ok_or(FetchError::Status(response.status()))?;
    if location.contains("://") {
        return absolute(location).map(Some);
    }
    let (scheme, authority) = (from.scheme_str(), from.authority());
    let (Some(scheme), Some(authority)) = (scheme, authority) else {
        return Err(FetchError::Url(from.to_string()));
    };
    let whole = match location {
        rest if rest.starts_with("//") => format!("{scheme}:{rest}"),
        path if path.starts_with('/') => format!("{scheme}://{authority}{path}"),
        relative => {
            let folder = from
                .path()
                .rfind('/')
                .map_or("/", |end| &from.path()[..=end]);
            format!("{scheme}://{authority}{folder}{relative}")
        }
    };
    absolute(&whole).map(Some)
}

/// A URL with a scheme and a server that can be fetched from.
fn absolute(url: &str) -> Result<Uri, FetchError> {
    let bad = || FetchError::Url(url.chars().take(200).collect());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri.authority().ok_or_else(bad)?;
    if !known || authority.as_str().contains('@') || uri.host().is_none_or(str::is_empty) {
        return Err(bad());
    }
    Ok(uri)
}

fn server(uri: &Uri) -> Result<(&str, u16), FetchError> {
    let host = uri.host().ok_or_else(|| FetchError::Url(uri.to_string()))?;
    let usual = if uri.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    Ok((host, uri.port_u16().unwrap_or(usual)))
}

/// Writes the body to a file, no more of it than there may be.
async fn keep(response: Response<Incoming>, to: &Path) -> Result<Fetched, FetchError> {
    let max = limits::BUILD_FETCH_BYTES_MAX;
    let modified_s = modified_s(&response);
    let mut file = tokio::fs::File::create(to)
        .await
        .map_err(FetchError::Keep)?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut bytes = 0_u64;
    let mut body = response.into_body();
    while let Some(frame) = progress(body.frame()).await? {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        bytes += data.len() as u64;
        if bytes > max {
            return Err(FetchError::TooLarge { max });
        }
        hash.update(&data);
        file.write_all(&data).await.map_err(FetchError::Keep)?;
    }
    file.flush().await.map_err(FetchError::Keep)?;
    Ok(Fetched {
        sha256: hex::encode(hash.finish()),
        modified_s,
    })
}

/// The time in `Last-Modified`, an HTTP date, as in `Sun, 06 Nov 1994 08:49:37 GMT`.
fn modified_s(response: &Response<Incoming>) -> u64 {
    let value = response.headers().get(header::LAST_MODIFIED);
    let date = value.and_then(|value| value.to_str().ok());
    date.and_then(http_date).unwrap_or(0)
}

fn http_date(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let (_, date) = text.split_once(", ")?;
    let mut parts = date.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let month = parts.next().filter(|name| name.len() == 3)?;
    let month = (MONTHS.find(month)? / 3) as u64 + 1;
    let year: u64 = parts.next()?.parse().ok()?;
    let mut clock = parts
        .next()?
        .splitn(3, ':')
        .map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 {
        return None;
    }
    // Days since the epoch, with years that begin in March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second.min(60))
}

async fn progress<T>(work: impl Future<Output = T>) -> Result<T, FetchError> {
    let limit = limits::BUILD_FETCH_IDLE_TIMEOUT;
    timeout(limit, work)
        .await
        .map_err(|_| FetchError::TimedOut {
            limit_s: limit.as_secs(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_web_addresses_are_fetched() {
        for good in [
            "http://a/b",
            "https://a.example:8443/x?y=z",
            "http://192.0.2.1",
        ] {
            assert!(absolute(good).is_ok(), "{good}");
        }
        for bad in [
            "ftp://a/b",
            "file:///etc/passwd",
            "/x",
            "http://",
            "http://u:p@a/",
            "a b",
            "",
        ] {
            assert!(absolute(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates_of_the_web_are_read() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("yesterday", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 XXX 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(http_date(text), seconds, "{text}");
        }
    }
}
