//! Every answer that the proxy gives itself, to the byte.

use dormouse_ingress::OpenError;
use expect_test::{Expect, expect};

use crate::client::{
    BOTH, Client, connect, head, host, normalized, raw_exchange, read_to_close, request, text,
    whole,
};
use crate::fixture::{ENDPOINT, Fixture, OTHER_ENDPOINT, SUFFIX};
use tokio::io::AsyncWriteExt;

async fn check(fixture: &Fixture, request: &str, expected: &Expect) {
    let answer = raw_exchange(fixture, &format!("{request}connection: close\r\n\r\n")).await;
    expected.assert_eq(&normalized(&answer));
}

#[tokio::test]
async fn a_request_without_a_token_or_with_nonsense_is_refused() {
    let fixture = Fixture::new().await;
    let bare = format!("GET / HTTP/1.1\r\nhost: {}\r\n", host(ENDPOINT));
    let expected = expect![[r#"
        HTTP/1.1 403 Forbidden
        cache-control: private, no-store
        content-type: text/plain
        x-amzn-requestid: …
        connection: close
        content-length: 30
        date: …

        Request missing authentication"#]];
    check(&fixture, &bare, &expected).await;
    check(
        &fixture,
        &format!("{bare}x-aws-proxy-auth: not-a-token\r\n"),
        &expected,
    )
    .await;
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn a_token_that_does_not_open_this_endpoint_is_refused() {
    let fixture = Fixture::new().await;
    let expected = expect![[r#"
        HTTP/1.1 403 Forbidden
        cache-control: private, no-store
        content-type: text/plain
        x-amzn-requestid: …
        connection: close
        content-length: 27
        date: …

        Token authentication failed"#]];
    for token in [
        fixture.token_for(OTHER_ENDPOINT, 60),
        fixture.token_for(ENDPOINT, -1),
    ] {
        let request = format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nx-aws-proxy-auth: {token}\r\n",
            host(ENDPOINT)
        );
        check(&fixture, &request, &expected).await;
    }
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn an_unknown_host_below_the_wildcard_is_refused_like_a_foreign_token() {
    let fixture = Fixture::new().await;
    for name in [host("www"), host(OTHER_ENDPOINT), SUFFIX.to_owned()] {
        let mut stream = connect(&fixture, &name, "http/1.1").await;
        let token = fixture.token();
        let request = format!(
            "GET / HTTP/1.1\r\nhost: {name}\r\nx-aws-proxy-auth: {token}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("write");
        let answer = read_to_close(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(
            answer.ends_with("\r\n\r\nToken authentication failed"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_port_beyond_the_grant_is_refused() {
    let fixture = Fixture::new().await;
    let request = format!("{}x-aws-proxy-port: 22\r\n", head(&fixture, "GET /"));
    let expected = expect![[r#"
        HTTP/1.1 403 Forbidden
        cache-control: private, no-store
        content-type: text/plain
        x-amzn-requestid: …
        connection: close
        content-length: 21
        date: …

        Access to port denied"#]];
    check(&fixture, &request, &expected).await;
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn a_port_that_is_none_is_refused() {
    let fixture = Fixture::new().await;
    let request = format!("{}x-aws-proxy-port: 0\r\n", head(&fixture, "GET /"));
    let expected = expect![[r#"
        HTTP/1.1 400 Bad Request
        cache-control: private, no-store
        content-type: text/plain
        x-amzn-requestid: …
        connection: close
        content-length: 24
        date: …

        Invalid X-aws-proxy-port"#]];
    check(&fixture, &request, &expected).await;
}

#[tokio::test]
async fn every_way_to_have_no_upstream_is_an_empty_502() {
    let fixture = Fixture::new().await;
    let expected = expect![[r#"
        HTTP/1.1 502 Bad Gateway
        cache-control: private, no-store
        x-amzn-requestid: …
        connection: close
        content-length: 0
        date: …

    "#]];
    for error in [
        OpenError::Ended,
        OpenError::Asleep,
        OpenError::WakeFailed,
        OpenError::NotListening,
    ] {
        fixture.refuse(error);
        check(&fixture, &head(&fixture, "GET /"), &expected).await;
    }
}

#[tokio::test]
async fn too_many_waiters_are_told_to_come_back() {
    let fixture = Fixture::new().await;
    fixture.refuse(OpenError::Overloaded);
    let expected = expect![[r#"
        HTTP/1.1 429 Too Many Requests
        cache-control: private, no-store
        retry-after: 1
        x-amzn-requestid: …
        connection: close
        content-length: 0
        date: …

    "#]];
    check(&fixture, &head(&fixture, "GET /"), &expected).await;
}

#[tokio::test]
async fn an_app_that_hangs_up_or_talks_nonsense_is_an_empty_502() {
    let fixture = Fixture::new().await;
    for words in [
        "nonsense\r\n\r\n",
        "",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let app = async {
            let mut app = fixture.app().await;
            app.head().await;
            app.stream.write_all(words.as_bytes()).await.expect("write");
        };
        let request = format!("{}connection: close\r\n\r\n", head(&fixture, "GET /"));
        let (answer, ()) = tokio::join!(raw_exchange(&fixture, &request), app);
        assert!(answer.starts_with("HTTP/1.1 502 "), "{words:?}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{words:?}: {answer}");
    }
}

#[tokio::test]
async fn refusals_are_the_same_over_both_protocols() {
    let fixture = Fixture::new().await;
    for http in BOTH {
        let mut client = Client::new(&fixture, http).await;
        let denied = request(&fixture, "GET", "/").header("x-aws-proxy-port", "22");
        let response = client
            .send(denied.body(whole("")).expect("request"))
            .await
            .expect("response");
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["content-type"], "text/plain");
        assert_eq!(response.headers()["cache-control"], "private, no-store");
        assert_eq!(response.headers()["x-amzn-requestid"].len(), 36);
        assert_eq!(text(response).await, "Access to port denied");
    }
}
