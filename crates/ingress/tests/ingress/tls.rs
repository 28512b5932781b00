//! Versions of TLS and names of certificates.

use tokio::io::AsyncWriteExt;

use crate::client::{connect_by, head, host, read_to_close};
use crate::fixture::{ENDPOINT, Fixture};

#[tokio::test]
async fn both_versions_of_tls_that_are_good_are_spoken() {
    let fixture = Fixture::new().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for alpn in ["h2", "http/1.1"] {
            let stream = connect_by(version, &fixture, &host(ENDPOINT), alpn).await;
            let session = stream.get_ref().1;
            assert_eq!(session.protocol_version(), Some(version.version));
            assert_eq!(session.alpn_protocol(), Some(alpn.as_bytes()));
        }
        let mut stream = connect_by(version, &fixture, &host(ENDPOINT), "http/1.1").await;
        let request = head(&fixture, "GET /") + "x-aws-proxy-port: 22\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("write");
        let answer = read_to_close(&mut stream).await;
        assert!(answer.ends_with("Access to port denied"), "{answer}");
    }
}
