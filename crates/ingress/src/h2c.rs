//! An HTTP/2 connection to an app, without TLS.
//!
//! hyper takes the next request as soon as the last has its answer, and may still be sending the body of that one. Here
//! the connection is the body's until it is over, so that it can be ended without harm to another's request.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body::Body;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::request_body::RequestBody;
use crate::tasks::Tasks;
use crate::upstream::Sent;

/// A request that nobody waits for any more is reset within this, or its connection ends.
const RESET_GRACE: Duration = Duration::from_secs(1);

pub(crate) struct H2c {
    sender: SendRequest<RequestBody>,
    /// What hyper runs for it.
    tasks: Tasks,
    /// Room for the body of one request.
    room: Arc<Semaphore>,
}

impl H2c {
    /// A connection that hyper runs in `tasks`, which are its own.
    pub(crate) fn new(sender: SendRequest<RequestBody>, tasks: Tasks) -> Self {
        Self {
            sender,
            tasks,
            room: Arc::new(Semaphore::new(1)),
        }
    }

    /// Sends `request`, and waits for the head of the answer.
    pub(crate) async fn send(&mut self, mut request: Request<RequestBody>) -> Sent {
        if !request.body().is_end_stream()
            && let Ok(room) = Arc::clone(&self.room).try_acquire_owned()
        {
            request.body_mut().occupy(room);
        }
        self.sender.try_send_request(request).await
    }

    /// Whether it can take a request.
    pub(crate) fn is_ready(&self) -> bool {
        self.room.available_permits() > 0 && self.sender.is_ready()
    }

    /// Waits until it can take a request; false when it never will.
    pub(crate) async fn ready(&mut self) -> bool {
        self.room.acquire().await.is_ok() && self.sender.ready().await.is_ok()
    }
}

impl Drop for H2c {
    /// Between two requests hyper closes it. With a body under way it would go on for as long as the app likes.
    fn drop(&mut self) {
        if self.room.available_permits() > 0 {
            return;
        }
        let (tasks, room) = (self.tasks.clone(), Arc::clone(&self.room));
        self.tasks.spawn(async move {
            if timeout(RESET_GRACE, room.acquire()).await.is_err() {
                tasks.end();
            }
        });
    }
}
