//! What `scripts/bench_ingress.py` measures: the real proxy in front of a server on this host instead of
//! a MicroVM, and that server.
//!
//! ```text
//! bench_proxy origin              a plain HTTP/1.1 server; prints its address
//! bench_proxy proxy DIR ADDRESS   the proxy in front of it, its CA in DIR; prints address, host and token as JSON
//! ```
//!
//! Both listen on loopback and run until they are killed.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_core::guest::ShellSpec;
use dormouse_core::{EndpointId, MicrovmId};
use dormouse_ingress::{
    Authority, Claims, Config, Ingress, OpenError, PortRange, Stream, Target, TokenKeys, TokenKind,
    Upstreams, Visit, VmLimits,
};
use dormouse_secrets::Sealer;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SUFFIX: &str = "lambda-microvm.us-east-1.localhost";
const ENDPOINT: &str = "30d00336-db07-f4f5-79c1-8571c22bef9e";
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Size of the pieces that a long answer is made of.
const PIECE_BYTES: usize = 64 << 10;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["origin"] => origin().await,
        ["proxy", folder, address] => proxy(Path::new(folder), address.parse()?).await,
        _ => Err("usage: bench_proxy origin | bench_proxy proxy DIR ADDRESS".into()),
    }
}

async fn proxy(folder: &Path, origin: SocketAddr) -> Result<(), AnyError> {
    let sealer = Arc::new(Sealer::create(&folder.join("sealing.key"))?);
    let authority = Arc::new(Authority::load_or_create(folder, &sealer)?);
    let tls = authority.server_config(SUFFIX, &[])?;
    let keys = Arc::new(TokenKeys::load_or_create(&folder.join("keys"), sealer)?);
    let expires = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)? + TOKEN_LIFE;
    let token = keys.mint(&Claims {
        endpoint: EndpointId::parse(ENDPOINT).ok_or("no endpoint id")?,
        ports: vec![PortRange::ALL],
        expires_s: expires.as_secs(),
        kind: TokenKind::Http,
    });
    let ingress = Ingress::new(
        Config::new(SUFFIX),
        Arc::new(tls),
        keys,
        Arc::new(HostSide {
            origin,
            microvm: MicrovmId::new(Uuid::nil()),
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!(
        r#"{{"address": "{}", "host": "{ENDPOINT}.{SUFFIX}", "token": "{token}"}}"#,
        listener.local_addr()?
    );
    dormouse_ingress::serve(listener, Arc::new(ingress), CancellationToken::new()).await;
    Ok(())
}

/// Every port of every MicroVM is the one server.
#[derive(Clone)]
struct HostSide {
    origin: SocketAddr,
    microvm: MicrovmId,
}

#[async_trait]
impl Upstreams for HostSide {
    /// Known, so that its traffic is counted as a MicroVM's is, and without limits.
    fn target(&self, _: &EndpointId) -> Option<Target> {
        Some(Target {
            microvm: self.microvm.clone(),
            limits: VmLimits::default(),
            awake: true,
        })
    }

    async fn enter(&self, _: &EndpointId) -> Result<Arc<dyn Visit>, OpenError> {
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Visit for HostSide {
    fn run(&self) -> u64 {
        0
    }

    async fn connect(&self, _: u16) -> Result<Box<dyn Stream>, OpenError> {
        let opened = TcpStream::connect(self.origin).await;
        let stream = opened.map_err(|_| OpenError::NotListening)?;
        stream
            .set_nodelay(true)
            .map_err(|_| OpenError::NotListening)?;
        Ok(Box::new(stream))
    }

    async fn shell(&self, _: &ShellSpec) -> Result<Box<dyn Stream>, OpenError> {
        Err(OpenError::NoShell)
    }
}

async fn origin() -> Result<(), AnyError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        // A client that hangs up is no error here.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(answer)));
    }
}

/// `GET /` is two bytes, `GET /bytes/N` is N of them; any other method is answered, once its whole body
/// is read, with the body's length.
async fn answer(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = AnyError>>, hyper::Error> {
    if request.method() != http::Method::GET {
        let length = length(request.into_body()).await?;
        return Ok(Response::new(Either::Left(Full::from(length.to_string()))));
    }
    let mut response = Response::new(Either::Left(Full::from("ok")));
    if let Some(length) = request.uri().path().strip_prefix("/bytes/") {
        match length.parse() {
            Ok(length) => return Ok(long_answer(length)),
            Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
        }
    }
    Ok(response)
}

async fn length(mut body: Incoming) -> Result<u64, hyper::Error> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, |piece| piece.len() as u64);
    }
    Ok(length)
}

fn long_answer<L>(length: usize) -> Response<Either<L, impl Body<Data = Bytes, Error = AnyError>>> {
    let piece = Bytes::from(vec![b'x'; PIECE_BYTES]);
    let pieces = (0..length)
        .step_by(PIECE_BYTES)
        .map(move |at| Ok(Frame::data(piece.slice(..PIECE_BYTES.min(length - at)))));
    let body = StreamBody::new(futures_util::stream::iter(pieces));
    let mut response = Response::new(Either::Right(body));
    response
        .headers_mut()
        .insert(http::header::CONTENT_LENGTH, length.into());
    response
}
