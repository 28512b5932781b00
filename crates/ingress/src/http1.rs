//! An HTTP/1.1 connection to an app.
//!
//! hyper has two halves of it: one that takes requests, and one that does the work, the *driver*, for a task to
//! run. To hand a small request to another task, and to get the answer back, costs more than the work itself. So
//! whoever waits for the answer runs the driver, and between two requests nobody does. Only where both sides may
//! speak at once, as under a request that has a body, a task runs it, for then it has to go on while nobody waits.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Waker};

use http::{Request, header};
use http_body::Body;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use crate::request_body::RequestBody;
use crate::tasks::Tasks;
use crate::tunnel::Tunnel;
use crate::upstream::Sent;

type Driver = Connection<TokioIo<Tunnel>, RequestBody>;

pub(crate) struct Http1 {
    sender: SendRequest<RequestBody>,
    /// None where a task runs it, and when it has ended.
    driver: Option<Box<Driver>>,
    /// Where a task runs it.
    task: Option<AbortHandle>,
}

impl Http1 {
    pub(crate) fn new(sender: SendRequest<RequestBody>, driver: Driver) -> Self {
        Self {
            sender,
            driver: Some(Box::new(driver)),
            task: None,
        }
    }

    /// Sends `request`, and waits for the head of the answer.
    pub(crate) async fn send(&mut self, request: Request<RequestBody>, tasks: &Tasks) -> Sent {
        let turns =
            request.body().is_end_stream() && !request.headers().contains_key(header::UPGRADE);
        if !turns && let Some(driver) = self.driver.take() {
            self.task = Some(tasks.spawn(driver.with_upgrades()));
        }
        let driver = &mut self.driver;
        let mut sent = pin!(self.sender.try_send_request(request));
        poll_fn(|context| {
            poll(driver, context);
            sent.as_mut().poll(context)
        })
        .await
    }

    /// Goes on with the answer's body.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) {
        poll(&mut self.driver, context);
    }

    /// Whether it can take a request, as far as the app lets it know.
    pub(crate) fn is_ready(&mut self) -> bool {
        self.poll(&mut Context::from_waker(Waker::noop()));
        self.sender.is_ready()
    }

    /// Waits until it can take a request; false when it never will.
    pub(crate) async fn ready(&mut self) -> bool {
        let (sender, driver) = (&mut self.sender, &mut self.driver);
        poll_fn(|context| {
            poll(driver, context);
            sender.poll_ready(context)
        })
        .await
        .is_ok()
    }
}

impl Drop for Http1 {
    /// Between two requests hyper closes it. With a request under way it would go on for as long as the app likes.
    fn drop(&mut self) {
        if let Some(task) = &self.task
            && !self.sender.is_ready()
        {
            task.abort();
        }
    }
}

fn poll(driver: &mut Option<Box<Driver>>, context: &mut Context<'_>) {
    if let Some(connection) = driver
        && Pin::new(&mut **connection).poll(context).is_ready()
    {
        *driver = None;
    }
}
