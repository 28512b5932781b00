//! The ingress as clients meet it: real TLS over loopback, HTTP/1.1 and HTTP/2, hostile and kind.
//! The app side is a tunnel whose other end the test holds.

mod access_log;
mod client;
mod fixture;
mod hostile;
mod lifecycle;
mod limits;
mod refusals;
mod routing;
mod streaming;
mod upgrade;
