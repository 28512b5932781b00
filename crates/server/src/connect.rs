//! The CONNECT listener: a forward proxy to the daemon itself, under AWS's own host names.
//!
//! A client with hard-wired names needs `HTTPS_PROXY` and the CA's certificate, no other change. For control
//! API, STS and S3 the TLS ends here, with certificates of the internal CA for exactly those names. What is
//! for an endpoint goes on to the ingress as it is. There is no way to any other host.

use crate::http::{self, Service};
use bytes::Bytes;
use dormouse_core::limits;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const HTTPS_PORT: u16 = 443;

/// Which hosts there is a way to.
#[derive(Debug)]
pub(crate) struct Allowed {
    /// Names of control API, STS and S3; a star stands for one label or more.
    pub(crate) services: Vec<String>,
    /// Domains directly below which endpoints are.
    pub(crate) endpoints: Vec<String>,
}

/// What is behind the proxy.
pub(crate) struct Connect {
    pub(crate) allowed: Allowed,
    /// TLS for the services.
    pub(crate) tls: TlsAcceptor,
    /// What answers for the services.
    pub(crate) service: Arc<Service>,
    /// Where the ingress is.
    pub(crate) ingress: SocketAddr,
    pub(crate) stop: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Service,
    Endpoint,
}

/// Serves clients until the stop, then lets connections under way end.
pub(crate) async fn serve(listener: TcpListener, connect: Arc<Connect>) {
    http::accept(listener, &connect.stop, |stream, http| {
        let connect = Arc::clone(&connect);
        Client { connect, http }.serve(stream)
    })
    .await;
}

/// One client's connection.
#[derive(Clone)]
struct Client {
    connect: Arc<Connect>,
    /// Its place under the limit is in it; the tunnel keeps it.
    http: http::Client,
}

impl Client {
    async fn serve(self, stream: TcpStream) {
        let stop = self.connect.stop.clone();
        let service = service_fn(move |request| {
            let client = self.clone();
            async move { Ok::<_, Infallible>(client.answer(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HTTP_HEAD_TIMEOUT)
            .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
            tracing::debug!(%error, "a client of CONNECT broke off");
        }
    }

    async fn answer(self, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::CONNECT {
            let text = "This is a proxy for HTTPS: it takes CONNECT and nothing else.\n";
            let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, text.to_owned());
            let allowed = HeaderValue::from_static("CONNECT");
            refusal.headers_mut().insert(ALLOW, allowed);
            return refusal;
        }
        let target = request.uri().authority().cloned();
        let destination = target.as_ref().and_then(|target| {
            let port = target.port_u16();
            (port == Some(HTTPS_PORT)).then(|| self.connect.allowed.destination(target.host()))?
        });
        let Some(destination) = destination else {
            let target = target.map(|target| target.to_string()).unwrap_or_default();
            tracing::info!(target, "CONNECT refused");
            return refusal(StatusCode::FORBIDDEN, self.connect.allowed.explain(&target));
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let tasks = self.http.tasks.clone();
        tasks.spawn(self.tunnel(upgrade, destination));
        Response::default()
    }

    async fn tunnel(self, upgrade: OnUpgrade, destination: Destination) {
        let stop = self.connect.stop.clone();
        let client = match upgrade.await {
            Ok(client) => TokioIo::new(client),
            Err(error) => {
                tracing::debug!(%error, "a client of CONNECT broke off");
                return;
            }
        };
        match destination {
            Destination::Service => self.connect.serve_api(client, self.http).await,
            Destination::Endpoint => {
                stop.run_until_cancelled(self.connect.join_ingress(client))
                    .await;
            }
        }
    }
}

impl Allowed {
    fn destination(&self, host: &str) -> Option<Destination> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let below = |domain: &str| {
            let before = host
                .strip_suffix(domain)
                .and_then(|front| front.strip_suffix('.'));
            before.is_some_and(|front| !front.is_empty())
        };
        if self
            .endpoints
            .iter()
            .any(|domain| host == *domain || below(domain))
        {
            return Some(Destination::Endpoint);
        }
        let fits = |name: &String| match name.strip_prefix("*.") {
            Some(domain) => below(domain),
            None => host == *name,
        };
        self.services
            .iter()
            .any(fits)
            .then_some(Destination::Service)
    }

    fn explain(&self, target: &str) -> String {
        let endpoints = self.endpoints.iter().map(|domain| format!("*.{domain}"));
        let allowed: Vec<String> = self.services.iter().cloned().chain(endpoints).collect();
        format!(
            "dormouse does not connect to {target:?}. It stands in for these hosts, at port 443:\n  {}\n",
            allowed.join("\n  ")
        )
    }
}

impl Connect {
    /// Takes the TLS off and serves the API.
    async fn serve_api(&self, stream: TokioIo<Upgraded>, client: http::Client) {
        match timeout(limits::TLS_HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let service = Arc::clone(&self.service);
                http::connection(stream, client, service, self.stop.clone()).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake took too long"),
        }
    }

    /// Copies between client and ingress until both have closed.
    async fn join_ingress(&self, mut client: TokioIo<Upgraded>) {
        let copied = async {
            let mut ingress = TcpStream::connect(self.ingress).await?;
            ingress.set_nodelay(true)?;
            copy_bidirectional(&mut client, &mut ingress).await
        };
        if let Err(error) = copied.await {
            tracing::debug!(%error, "a tunnel to the ingress broke");
        }
    }
}

fn refusal(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_way_to_the_daemons_own_names_and_to_no_other() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let allowed = Allowed {
            services: names(&["lambda.us-east-1.amazonaws.com", "*.s3.amazonaws.com"]),
            endpoints: names(&["vm.example.com", "lambda-microvm.us-east-1.on.aws"]),
        };
        use Destination::{Endpoint, Service};
        for (host, destination) in [
            ("lambda.us-east-1.amazonaws.com", Some(Service)),
            ("LAMBDA.us-east-1.amazonaws.com.", Some(Service)),
            ("code.s3.amazonaws.com", Some(Service)),
            ("my.code.s3.amazonaws.com", Some(Service)),
            ("x.lambda-microvm.us-east-1.on.aws", Some(Endpoint)),
            ("x.vm.example.com", Some(Endpoint)),
            ("lambda.eu-west-1.amazonaws.com", None),
            (".s3.amazonaws.com", None),
            ("xs3.amazonaws.com", None),
            ("evilvm.example.com", None),
            ("vm.example.com.evil.org", None),
            ("127.0.0.1", None),
            ("localhost", None),
            ("", None),
        ] {
            assert_eq!(allowed.destination(host), destination, "{host}");
        }
        let said = allowed.explain("example.org:443");
        assert!(
            said.contains("lambda.us-east-1.amazonaws.com") && said.contains("*.vm.example.com")
        );
    }
}
