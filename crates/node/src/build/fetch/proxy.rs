//! The proxy of a build, from its arguments: `http_proxy`, `https_proxy` and `no_proxy`, in either case.

use super::FetchError;
use crate::vmm::Stream;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dormouse_core::limits;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;

pub(super) struct Proxy {
    pub(super) host: String,
    pub(super) port: u16,
    /// Credentials, marked as secret.
    pub(super) authorization: Option<HeaderValue>,
}

impl Proxy {
    /// The proxy for a URL; none when it is reached directly.
    pub(super) fn of(
        build_args: &BTreeMap<String, String>,
        uri: &Uri,
    ) -> Result<Option<Self>, FetchError> {
        let setting = |name: &str| {
            let found = build_args
                .get(name)
                .or_else(|| build_args.get(&name.to_ascii_uppercase()));
            found.filter(|value| !value.is_empty())
        };
        let name = match uri.scheme_str() {
            Some("https") => "https_proxy",
            _ => "http_proxy",
        };
        let host = uri.host().unwrap_or_default();
        let direct = setting("no_proxy").is_some_and(|list| is_listed(list, host));
        let proxy = setting(name)
            .or_else(|| setting("all_proxy"))
            .filter(|_| !direct);
        proxy.map(|proxy| Self::parse(proxy)).transpose()
    }

    fn parse(text: &str) -> Result<Self, FetchError> {
        let rest = text.strip_prefix("http://").ok_or(FetchError::Proxy)?;
        let rest = rest.trim_end_matches('/');
        let (credentials, server) = match rest.rsplit_once('@') {
            Some((credentials, server)) => (Some(credentials), server),
            None => (None, rest),
        };
        let server: Uri = format!("http://{server}")
            .parse()
            .map_err(|_| FetchError::Proxy)?;
        Ok(Self {
            host: server.host().ok_or(FetchError::Proxy)?.to_owned(),
            port: server.port_u16().unwrap_or(80),
            authorization: credentials.map(basic).transpose()?,
        })
    }

    /// Asks the proxy for a tunnel to a server.
    pub(super) async fn tunnel(
        &self,
        stream: Box<dyn Stream>,
        host: &str,
        port: u16,
    ) -> Result<Box<dyn Stream>, FetchError> {
        let authority = format!("{host}:{port}");
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(&authority)
            .header(header::HOST, &authority);
        if let Some(credentials) = &self.authorization {
            request = request.header(header::PROXY_AUTHORIZATION, credentials.clone());
        }
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|_| FetchError::Url(authority.clone()))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        // Ends by itself when the tunnel begins or the proxy refuses.
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::ProxyRefused(response.status()));
        }
        Ok(Box::new(TokioIo::new(hyper::upgrade::on(response).await?)))
    }
}

fn basic(credentials: &str) -> Result<HeaderValue, FetchError> {
    let value = format!("Basic {}", STANDARD.encode(credentials));
    let mut value = HeaderValue::try_from(value).map_err(|_| FetchError::Proxy)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whether a `no_proxy` list has this host: itself, or a domain that it lies in.
fn is_listed(list: &str, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    list.split(',').map(str::trim).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        let domain = entry.trim_start_matches("*.").trim_start_matches('.');
        let within = host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        entry == "*" || (!domain.is_empty() && within)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[(&str, &str)], url: &str) -> Option<(String, u16)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let args = args.iter().map(owned).collect();
        let proxy = Proxy::of(&args, &url.parse().unwrap()).unwrap();
        proxy.map(|proxy| (proxy.host, proxy.port))
    }

    #[test]
    fn a_proxy_is_for_its_scheme_and_not_for_what_is_listed() {
        let args = [
            ("http_proxy", "http://p:3128"),
            ("HTTPS_PROXY", "http://u:pw@s:8080/"),
            ("no_proxy", "localhost, .corp.example,*.x"),
        ];
        assert_eq!(of(&args, "http://a/"), Some(("p".to_owned(), 3128)));
        assert_eq!(of(&args, "https://a/"), Some(("s".to_owned(), 8080)));
        for direct in [
            "http://localhost/",
            "http://git.corp.example/",
            "http://corp.example/",
            "http://a.x/",
        ] {
            assert_eq!(of(&args, direct), None, "{direct}");
        }
        assert!(of(&args, "http://notcorp.example/").is_some());
        assert_eq!(
            of(
                &[("no_proxy", "*"), ("http_proxy", "http://p")],
                "http://a/"
            ),
            None
        );
    }

    #[test]
    fn credentials_of_a_proxy_are_secret() {
        let proxy = Proxy::parse("http://u:pw@s:1").unwrap();
        let authorization = proxy.authorization.unwrap();
        assert_eq!(authorization.as_bytes(), b"Basic dTpwdw==");
        assert!(authorization.is_sensitive());
        assert!(Proxy::parse("socks5://x").is_err());
    }
}
