//! `GET /metrics`: what the ingress counts, for Prometheus. It has no authentication, so it has a listener
//! of its own, and none unless configured.

use dormouse_core::limits;
use dormouse_ingress::Metrics;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Answers scrapes until `stop`.
pub(crate) async fn serve(listener: TcpListener, metrics: Metrics, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits::SCRAPES_AT_ONCE));
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (metrics, stop) = (metrics.clone(), stop.clone());
                    tokio::spawn(async move {
                        stop.run_until_cancelled(connection(stream, metrics)).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "connection for metrics was not accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
}

async fn connection(stream: TcpStream, metrics: Metrics) {
    let service = service_fn(|request| {
        let answer = answer(&metrics, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEAD_TIMEOUT)
        .max_headers(limits::HTTP_HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection for metrics broke");
    }
}

fn answer(metrics: &Metrics, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    } else {
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
        *response.body_mut() = Full::from(metrics.text());
    }
    response
}
