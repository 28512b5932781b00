//! The ingress as clients meet it: real TLS over loopback, HTTP/1.1 and HTTP/2, hostile and kind.
//! The app side is a tunnel whose other end the test holds.

mod client;
mod fixture;
mod hostile;
mod lifecycle;
mod plain;
mod refusals;
mod routing;
mod streaming;
mod tls;
mod upgrade;
