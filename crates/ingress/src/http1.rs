//! An HTTP/1.1 connection to an app.
//!
//! hyper has two halves of it: one that takes requests, and one that does the work, the *driver*, for a task to
//! run. To hand a small request to another task, and to get the answer back, costs more than the work itself. So
//! whoever waits for the answer runs the driver, and between two requests nobody does. Only where both sides may
//! speak at once, as under a request that has a body, a task runs it, for then it has to go on while nobody waits.
//!
//! The halves wake each other's tasks. Where both run in one task, it would wake itself, and look at everything
//! once more for nothing. So they are polled without a waker first, and with one where there is nothing more to do.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

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
        let mut goes_out = true;
        poll_fn(|context| {
            let mut answer = |context: &mut Context<'_>| sent.as_mut().poll(context);
            if std::mem::take(&mut goes_out) {
                // There is no answer yet to look for.
                poll(driver, context);
                return answer(context);
            }
            drive(driver, context, answer)
        })
        .await
    }

    /// Polls a part of the answer, which the connection brings.
    pub(crate) fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        part: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        drive(&mut self.driver, context, part)
    }

    /// Whether nobody has to wait for it to become ready: what is left is seen to by who takes it next.
    pub(crate) fn rests(&self) -> bool {
        self.driver.is_some() || self.sender.is_ready()
    }

    /// Whether it can take a request, as far as the app lets it know.
    pub(crate) fn is_ready(&mut self) -> bool {
        poll(&mut self.driver, &mut unheard());
        self.sender.is_ready()
    }

    /// Ends the task that runs it, which may go on with a request after its answer.
    pub(crate) fn abandon(self) {
        if let Some(task) = self.task {
            task.abort();
        }
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

/// Polls `part`, and the driver, which brings it, as far as it has to.
fn drive<T>(
    driver: &mut Option<Box<Driver>>,
    context: &mut Context<'_>,
    mut part: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    if driver.is_some() {
        // What wakes while all of it is looked at has been seen already.
        let unheard = &mut unheard();
        if let Poll::Ready(ready) = part(unheard) {
            return Poll::Ready(ready);
        }
        poll(driver, unheard);
        if let Poll::Ready(ready) = part(unheard) {
            return Poll::Ready(ready);
        }
        poll(driver, context);
    }
    part(context)
}

fn poll(driver: &mut Option<Box<Driver>>, context: &mut Context<'_>) {
    if let Some(connection) = driver
        && Pin::new(&mut **connection).poll(context).is_ready()
    {
        *driver = None;
    }
}

/// For polls after which nobody is to be woken.
fn unheard() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
