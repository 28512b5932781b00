//! One request's way through the proxy: admit, open, exchange, copy.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use dormouse_core::Timestamp;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::headers;
use crate::refusal::Refusal;
use crate::request::{Gate, Route};
use crate::request_body::RequestBody;
use crate::tasks::Tasks;
use crate::upstream;
use crate::{Ingress, OpenError};

/// The app's body as it comes, or the proxy's own.
pub(crate) type ResponseBody = Either<Incoming, Full<Bytes>>;

/// One client's connection.
pub(crate) struct Client {
    pub(crate) ingress: Arc<Ingress>,
    /// The name in the TLS handshake.
    pub(crate) sni: Option<String>,
    pub(crate) tasks: Tasks,
    /// The connection's place under the limit; a switched connection keeps it.
    pub(crate) place: Arc<OwnedSemaphorePermit>,
}

impl Client {
    /// Answers a request, with the app's answer or with a refusal.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let id = Uuid::new_v4().to_string();
        let id = HeaderValue::try_from(id).expect("a UUID is a header value");
        let mut response = match self.forward(request, &id).await {
            Ok(response) => response,
            Err(refusal) => {
                tracing::debug!(request_id = ?id, ?refusal, "request refused");
                refusal.response()
            }
        };
        response.headers_mut().insert(headers::REQUEST_ID, id);
        response
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        id: &HeaderValue,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let switch = Switch::asked(&mut request);
        let (parts, body) = request.into_parts();
        let body = RequestBody::new(&parts, body, &self.tasks);
        let route = self.gate().admit(&parts)?;
        let stream = self
            .ingress
            .upstreams
            .open(&route.endpoint, route.port)
            .await
            .map_err(|error| unopened(error, &route, id))?;
        let mut forwarded = Request::new(body);
        *forwarded.method_mut() = parts.method;
        *forwarded.uri_mut() = origin_form(parts.uri);
        *forwarded.headers_mut() = headers::for_app(
            parts.headers,
            route.host.clone(),
            id.clone(),
            switch.as_ref().map(|switch| switch.protocol.clone()),
        );
        let response = upstream::exchange(stream, route.protocol, forwarded, &self.tasks)
            .await
            .map_err(|error| unanswered(&error, &route, id))?;
        self.relay(response, switch)
    }

    /// Hands the app's answer on, its body still streaming; after a 101, joins the two connections.
    fn relay(
        &self,
        mut response: Response<Incoming>,
        switch: Option<Switch>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let mut protocol = None;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // An app that switches unasked would leave the client waiting for its answer.
            let switch = switch.ok_or(Refusal::Unreachable)?;
            protocol = headers::upgrade(response.headers()).or(Some(switch.protocol));
            let app = hyper::upgrade::on(&mut response);
            let place = Arc::clone(&self.place);
            self.tasks.spawn(async move {
                join(switch.client, app).await;
                drop(place);
            });
        }
        let (parts, body) = response.into_parts();
        let body = match protocol {
            Some(_) => Either::Right(Full::default()),
            None => Either::Left(body),
        };
        let mut relayed = Response::new(body);
        *relayed.status_mut() = parts.status;
        *relayed.headers_mut() = headers::for_client(parts.headers, protocol);
        Ok(relayed)
    }

    fn gate(&self) -> Gate<'_> {
        let since_epoch = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Gate {
            names: &self.ingress.config.names,
            sni: self.sni.as_deref(),
            keys: &self.ingress.keys,
            now: Timestamp(0).after(since_epoch),
        }
    }
}

/// A client's wish to go on with another protocol on the same connection.
struct Switch {
    protocol: HeaderValue,
    client: OnUpgrade,
}

impl Switch {
    fn asked(request: &mut Request<Incoming>) -> Option<Self> {
        if request.version() != Version::HTTP_11 {
            return None;
        }
        let protocol = headers::upgrade(request.headers())?;
        Some(Self {
            protocol,
            client: hyper::upgrade::on(request),
        })
    }
}

/// Copies between client and app until both have closed, or one has failed.
async fn join(client: OnUpgrade, app: OnUpgrade) {
    let (client, app) = match tokio::try_join!(client, app) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "the protocol was not switched");
            return;
        }
    };
    let (mut client, mut app) = (TokioIo::new(client), TokioIo::new(app));
    if let Err(error) = copy_bidirectional(&mut client, &mut app).await {
        tracing::debug!(%error, "a switched connection broke");
    }
}

/// The target as an origin gets it: path and query. `OPTIONS *` stays as it is.
fn origin_form(target: Uri) -> Uri {
    target
        .into_parts()
        .path_and_query
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
        .into()
}

fn unopened(error: OpenError, route: &Route, id: &HeaderValue) -> Refusal {
    let Route { endpoint, port, .. } = route;
    tracing::info!(request_id = ?id, %endpoint, port, reason = %error, "no way to the app");
    match error {
        OpenError::Overloaded => Refusal::Overloaded,
        OpenError::Ended | OpenError::Asleep | OpenError::WakeFailed | OpenError::NotListening => {
            Refusal::Unreachable
        }
    }
}

fn unanswered(error: &hyper::Error, route: &Route, id: &HeaderValue) -> Refusal {
    // The body that we hand on comes from the client: if it breaks, the app is not to blame.
    if error.is_user() {
        return Refusal::BadBody;
    }
    let Route { endpoint, port, .. } = route;
    tracing::info!(request_id = ?id, %endpoint, port, %error, "no answer from the app");
    Refusal::Unreachable
}
