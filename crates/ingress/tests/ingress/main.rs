//! The ingress as clients meet it: real TLS over loopback, HTTP/1.1 and HTTP/2, hostile and kind.
//! The app side is a tunnel whose other end the test holds.

mod access_log;
mod app_tls;
mod client;
mod details;
mod fixture;
mod floods_http2;
mod frames_http2;
mod grpc;
mod hostile;
mod hostile_http2;
mod lifecycle;
mod limits;
mod plain;
mod pooling;
mod refusals;
mod routing;
mod shell;
mod smuggling;
mod streaming;
mod tls;
mod unread;
mod upgrade;
mod websocket;
