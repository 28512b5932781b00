//! `CONNECT`: a byte stream from the host to a port on which the app listens on loopback, or to one that a
//! build step fetches from: then it is the VM's packet filter that says what can be reached.

use crate::refusal::Refusal;
use http::{Request, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
#[cfg(test)]
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

/// Loopback connects at once; a full backlog and a far server do not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One direction's buffer, in bytes: 512 tunnels must fit into a small guest.
const BUFFER_BYTES: usize = 16 * 1024;

/// Connects to the port that the request names and joins the two streams once the answer is sent.
pub(crate) async fn open(request: Request<Incoming>) -> Result<(), Refusal> {
    let target = target(request.uri())?;
    let connecting = TcpStream::connect(target);
    let refused = |reason: String| {
        let message = format!("cannot connect to {target}: {reason}");
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

/// The address of a `CONNECT` target. Names are not looked up here.
fn target(uri: &Uri) -> Result<SocketAddrV4, Refusal> {
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let address = authority.and_then(|authority| authority.parse::<SocketAddrV4>().ok());
    address
        .filter(|address| address.port() != 0)
        .ok_or_else(|| {
            Refusal::new(
                StatusCode::FORBIDDEN,
                format!("tunnels lead to an IPv4 address and port, not to {uri}"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_and_a_port() {
        let address = |uri: &str| target(&uri.parse().expect("a URI")).ok();
        let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080);
        assert_eq!(address("127.0.0.1:8080"), Some(loopback));
        assert!(address("192.0.2.7:80").is_some());
        for bad in [
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "localhost:80",
            "[::1]:80",
            "evil@127.0.0.1:80",
            "127.1:80",
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }
}
