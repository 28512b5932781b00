//! `CONNECT`: a byte stream from the host to a port on which the app listens on loopback.

use crate::refusal::Refusal;
use http::{Request, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

/// Loopback connects at once; a full backlog does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One direction's buffer, in bytes: 512 tunnels must fit into a small guest.
const BUFFER_BYTES: usize = 16 * 1024;

/// Connects to the port that the request names and joins the two streams once the answer is sent.
pub(crate) async fn open(request: Request<Incoming>) -> Result<(), Refusal> {
    let port = target(request.uri())?;
    let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    let refused = |reason: String| {
        let message = format!("cannot connect to 127.0.0.1:{port}: {reason}");
        Refusal::new(StatusCode::BAD_GATEWAY, message)
    };
    let mut app = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| refused("timed out".to_owned()))?
        .map_err(|error| refused(error.to_string()))?;
    app.set_nodelay(true)
        .map_err(|error| refused(error.to_string()))?;
    tokio::spawn(async move {
        // A host that hangs up, or an app that resets: the tunnel ends and both learn of it.
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let mut host = TokioIo::new(upgraded);
            let _ = copy_bidirectional_with_sizes(&mut host, &mut app, BUFFER_BYTES, BUFFER_BYTES)
                .await;
        }
    });
    Ok(())
}

/// The port of a `CONNECT` target; the only host is the guest itself.
fn target(uri: &Uri) -> Result<u16, Refusal> {
    let port = uri
        .authority()
        .filter(|authority| authority.host() == "127.0.0.1" && !authority.as_str().contains('@'))
        .and_then(http::uri::Authority::port_u16)
        .filter(|port| *port != 0);
    port.ok_or_else(|| {
        Refusal::new(
            StatusCode::FORBIDDEN,
            format!("the only tunnels are to 127.0.0.1:PORT, not to {uri}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_target_is_loopback() {
        let port = |uri: &str| target(&uri.parse().expect("a URI")).ok();
        assert_eq!(port("127.0.0.1:8080"), Some(8080));
        for bad in [
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.2:80",
            "localhost:80",
            "[::1]:80",
            "evil@127.0.0.1:80",
            "10.0.0.1:80",
        ] {
            assert_eq!(port(bad), None, "{bad}");
        }
    }
}
