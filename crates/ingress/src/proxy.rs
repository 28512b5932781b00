//! One request's way through the proxy: admit, take a turn, exchange, copy.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use dormouse_core::{EndpointId, Timestamp};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::connections::Seat;
use crate::exchange::{Exchange, Measured};
use crate::headers;
use crate::refusal::Refusal;
use crate::request::{Admitted, Gate, Route};
use crate::request_body::RequestBody;
use crate::request_id;
use crate::switch::{self, Ask};
use crate::tasks::Tasks;
use crate::token_cache::TokenCache;
use crate::upstream::{AppBody, ExchangeError, Passage, Upstream};
use crate::websocket;
use crate::{Ingress, OpenError};

/// The app's body as it comes, or the proxy's own.
pub(crate) type ResponseBody = Either<AppBody, Full<Bytes>>;

/// One client's connection.
pub(crate) struct Client {
    pub(crate) ingress: Arc<Ingress>,
    /// The name in the TLS handshake.
    pub(crate) sni: Option<String>,
    pub(crate) token_cache: TokenCache,
    pub(crate) upstream: Upstream,
    pub(crate) tasks: Tasks,
    /// The connection's place under the limit; each exchange keeps it.
    pub(crate) seat: Arc<Seat>,
}

impl Client {
    /// Answers a request, with the app's answer or with a refusal.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Response<Measured<ResponseBody>> {
        let id = request_id::next();
        let (parts, body) = request.into_parts();
        let sums = Arc::clone(&self.ingress.sums);
        let exchange = Arc::new(Exchange::begin(
            &parts,
            &id,
            sums,
            self.seat.busy(parts.version),
        ));
        let forwarded = self.forward(parts, body, &id, &exchange).await;
        let mut response = forwarded.unwrap_or_else(|refusal| {
            exchange.refused(refusal);
            refusal.response()
        });
        exchange.answered(response.status());
        response.headers_mut().insert(headers::REQUEST_ID, id);
        response.map(|body| Measured::new(body, exchange))
    }

    async fn forward(
        &self,
        mut parts: Parts,
        body: Incoming,
        id: &HeaderValue,
        exchange: &Arc<Exchange>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let body = RequestBody::new(
            &parts,
            body,
            &self.tasks,
            Arc::clone(exchange),
            self.ingress.config.body_timeout,
        );
        let route = match self.gate().admit(&parts)? {
            Admitted::App(route) => route,
            Admitted::Shell(route) => return self.shell(&route, parts, id, exchange).await,
        };
        let passage = self
            .turn(&route.endpoint, Some(route.port), exchange)
            .await?;
        let client = parts.extensions.remove::<OnUpgrade>();
        let forwarded = for_app(parts, body, &route, id);
        let response = self
            .upstream
            .exchange(&route, passage, forwarded)
            .await
            .map_err(|error| unanswered(error, &route, id))?;
        match (route.ask, client) {
            (Some(ask), Some(client)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Ok(self.switch(response, &ask, client, route.marker, exchange))
            }
            (ask, _) => unswitched(response, ask.as_ref()),
        }
    }

    /// Waits for the request's turn among those of its MicroVM.
    pub(crate) async fn turn(
        &self,
        endpoint: &EndpointId,
        port: Option<u16>,
        exchange: &Arc<Exchange>,
    ) -> Result<Passage, Refusal> {
        let Ingress {
            upstreams, traffic, ..
        } = &*self.ingress;
        let target = upstreams.target(endpoint);
        let is_live = |endpoint: &EndpointId| upstreams.target(endpoint).is_some();
        let vm = target
            .as_ref()
            .map(|target| traffic.vm(endpoint, target, is_live));
        exchange.admitted(endpoint, port, vm.clone());
        let asleep = target.is_some_and(|target| !target.awake);
        let held = vm.as_ref().filter(|_| asleep).map(|vm| vm.hold());
        if let Some(vm) = &vm {
            exchange.has_turn(traffic.turn(vm, !asleep).await?);
        }
        Ok(Passage {
            exchange: Arc::clone(exchange),
            vm,
            asleep,
            held,
        })
    }

    /// Hands the head of the app's 101 on and joins the two connections.
    fn switch(
        &self,
        mut response: Response<AppBody>,
        ask: &Ask,
        client: OnUpgrade,
        marker: bool,
        exchange: &Arc<Exchange>,
    ) -> Response<ResponseBody> {
        let app = hyper::upgrade::on(&mut response);
        let mut headers = std::mem::take(response.headers_mut());
        let protocol = headers::upgrade(&headers).unwrap_or_else(|| ask.protocol());
        let websocket = switch::is_websocket(&protocol);
        headers.remove(header::CONTENT_LENGTH);
        if websocket && marker {
            websocket::select_marker(&mut headers);
        }
        let mut switched = Response::new(Either::Right(Full::default()));
        if *ask == Ask::Stream {
            websocket::to_http2(&mut headers);
            *switched.headers_mut() = headers::for_client(headers, None);
        } else {
            *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *switched.headers_mut() = headers::for_client(headers, Some(protocol));
        }
        let connection = response.into_body().into_connection();
        self.tasks.spawn(switch::join(
            client,
            app,
            connection,
            websocket,
            Arc::clone(exchange),
        ));
        switched
    }

    fn gate(&self) -> Gate<'_> {
        let since_epoch = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Gate {
            names: &self.ingress.config.names,
            sni: self.sni.as_deref(),
            keys: &self.ingress.keys,
            cache: &self.token_cache,
            now: Timestamp(0).after(since_epoch),
        }
    }
}

/// The request as the app gets it.
fn for_app(
    parts: Parts,
    body: RequestBody,
    route: &Route,
    id: &HeaderValue,
) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = match route.ask {
        Some(Ask::Stream) => Method::GET,
        Some(Ask::Upgrade(_)) | None => parts.method,
    };
    *request.uri_mut() = origin_form(parts.uri);
    *request.headers_mut() = headers::for_app(parts.headers, route, id.clone());
    request
}

/// Hands the app's answer on, its body still streaming.
fn unswitched(
    response: Response<AppBody>,
    ask: Option<&Ask>,
) -> Result<Response<ResponseBody>, Refusal> {
    let status = response.status();
    // An app that switches unasked would leave the client waiting for its answer, and success is what tells an
    // HTTP/2 client that its WebSocket stands.
    if status == StatusCode::SWITCHING_PROTOCOLS
        || (ask == Some(&Ask::Stream) && status.is_success())
    {
        return Err(Refusal::Unreachable);
    }
    let (parts, body) = response.into_parts();
    let mut relayed = Response::new(Either::Left(body));
    *relayed.status_mut() = status;
    *relayed.headers_mut() = headers::for_client(parts.headers, None);
    Ok(relayed)
}

/// The target as an origin gets it: path and query. `OPTIONS *` stays as it is.
fn origin_form(target: Uri) -> Uri {
    target
        .into_parts()
        .path_and_query
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
        .into()
}

fn unanswered(error: ExchangeError, route: &Route, id: &HeaderValue) -> Refusal {
    let Route { endpoint, port, .. } = route;
    match &error {
        // The body that we hand on comes from the client: if it breaks, the app is not to blame.
        ExchangeError::Http(error) if error.is_user() => return Refusal::BadBody,
        ExchangeError::Open(OpenError::Overloaded) => return Refusal::Overloaded,
        ExchangeError::Open(_) | ExchangeError::TimedOut => {
            tracing::info!(request_id = ?id, %endpoint, port, reason = %error, "no way to the app");
        }
        ExchangeError::Http(_) | ExchangeError::Tls(_) => {
            let reason = std::error::Error::source(&error).map(ToString::to_string);
            tracing::info!(request_id = ?id, %endpoint, port, reason, "no answer from the app");
        }
    }
    Refusal::Unreachable
}
