//! Requests that two readers may read differently. Each case says what the app sees: nothing, or exactly one
//! request, whose framing has one meaning.

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::client::{connect, head, host, raw, raw_exchange, read_to_close};
use crate::fixture::{App, ENDPOINT, Fixture, OTHER_ENDPOINT, read_until, until};

/// Sends `request`; apps answer whatever they get. Returns the answer and what reached the apps.
async fn smuggle(fixture: &Fixture, request: &[u8]) -> (String, Vec<String>) {
    let mut apps = JoinSet::new();
    let exchange = async {
        let mut stream = raw(fixture).await;
        stream.write_all(request).await.expect("write");
        read_to_close(&mut stream).await
    };
    tokio::pin!(exchange);
    let answer = loop {
        tokio::select! {
            answer = exchange.as_mut() => break answer,
            app = fixture.app() => apps.spawn(answer_anything(app)),
        };
    };
    (answer, apps.join_all().await)
}

/// Answers without a look at the request. Returns all of it, once the proxy has closed the tunnel.
async fn answer_anything(mut app: App) -> String {
    let head = app.head().await;
    let words = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    app.stream.write_all(words).await.expect("write");
    let rest = app.rest().await.expect("rest");
    head + &String::from_utf8(rest).expect("text")
}

/// A request with these header lines and body, and one to `/hidden` behind it that would be good.
fn with_hidden(fixture: &Fixture, rest: &str) -> Vec<u8> {
    let (first, hidden) = (head(fixture, "POST /"), head(fixture, "GET /hidden"));
    format!("{first}{rest}{hidden}\r\n").into_bytes()
}

/// Nothing of it reaches an app.
async fn refused(rest: &str) {
    let fixture = Fixture::new().await;
    refused_as(&fixture, &with_hidden(&fixture, rest), "HTTP/1.1 400 ").await;
}

async fn refused_as(fixture: &Fixture, request: &[u8], begin: &str) {
    let (answer, seen) = smuggle(fixture, request).await;
    let shown = String::from_utf8_lossy(request);
    assert!(answer.starts_with(begin), "{shown:?}: {answer}");
    assert_eq!(answer.matches("HTTP/1.").count(), 1, "{shown:?}: {answer}");
    assert!(seen.is_empty(), "{shown:?}: {seen:?}");
}

/// One request reaches the app, with this framing and body, and the connection ends.
async fn exactly_one(rest: &str, framing: &str, body: &str) {
    let fixture = Fixture::new().await;
    let request = with_hidden(&fixture, rest);
    let (answer, seen) = smuggle(&fixture, &request).await;
    assert_eq!(
        answer.matches("HTTP/1.1 200 OK").count(),
        1,
        "{rest:?}: {answer}"
    );
    assert_eq!(seen.len(), 1, "{rest:?}: {seen:?}");
    let (head, seen_body) = seen[0].split_once("\r\n\r\n").expect("head");
    let framed: Vec<&str> = head
        .lines()
        .filter(|line| line.starts_with("content-length") || line.starts_with("transfer-encoding"))
        .collect();
    assert_eq!(framed, [framing], "{rest:?}");
    assert_eq!(seen_body, body, "{rest:?}");
}

const CHUNKED: &str = "transfer-encoding: chunked";

#[tokio::test]
async fn cl_te_is_one_chunked_request() {
    exactly_one(
        "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED,
        "0\r\n\r\n",
    )
    .await;
}

#[tokio::test]
async fn te_cl_is_one_chunked_request() {
    exactly_one(
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        CHUNKED,
        "1\r\nx\r\n0\r\n\r\n",
    )
    .await;
}

#[tokio::test]
async fn two_lengths_that_differ_are_refused() {
    refused("content-length: 5\r\ncontent-length: 6\r\n\r\nhello").await;
}

#[tokio::test]
async fn two_lengths_that_agree_are_one() {
    exactly_one(
        "content-length: 5\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
        "content-length: 5",
        "hello",
    )
    .await;
}

#[tokio::test]
async fn a_list_of_lengths_is_refused() {
    refused("content-length: 5, 5\r\n\r\nhello").await;
}

#[tokio::test]
async fn a_length_that_is_no_number_is_refused() {
    for length in [
        "+5",
        "-5",
        "0x5",
        "5 5",
        "5.0",
        "5;",
        "",
        "five",
        "99999999999999999999",
    ] {
        refused(&format!("content-length: {length}\r\n\r\nhello")).await;
    }
}

#[tokio::test]
async fn a_transfer_coding_but_chunked_is_refused() {
    for coding in [
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, identity",
        "chunked, chunked",
        "xchunked",
        "chunkedx",
        "chunked;q=1",
        "\"chunked\"",
        "chunked,",
        ", chunked",
        "",
    ] {
        refused(&format!(
            "transfer-encoding: {coding}\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"
        ))
        .await;
    }
}

#[tokio::test]
async fn two_transfer_codings_are_refused() {
    for (first, second) in [
        ("chunked", "chunked"),
        ("chunked", "identity"),
        ("gzip", "chunked"),
    ] {
        refused(&format!(
            "transfer-encoding: {first}\r\ntransfer-encoding: {second}\r\n\r\n0\r\n\r\n"
        ))
        .await;
    }
}

#[tokio::test]
async fn the_case_of_chunked_and_space_around_it_do_not_matter() {
    for line in [
        "Transfer-Encoding: CHUNKED",
        "transfer-encoding:\tchunked \t",
    ] {
        exactly_one(
            &format!("{line}\r\nconnection: close\r\n\r\n0\r\n\r\n"),
            CHUNKED,
            "0\r\n\r\n",
        )
        .await;
    }
}

#[tokio::test]
async fn chunked_in_http_1_0_is_refused() {
    let fixture = Fixture::new().await;
    let request = with_hidden(&fixture, "transfer-encoding: chunked\r\n\r\n0\r\n\r\n");
    let request = String::from_utf8(request)
        .expect("text")
        .replacen("HTTP/1.1", "HTTP/1.0", 1);
    let (answer, seen) = smuggle(&fixture, request.as_bytes()).await;
    assert!(answer.contains(" 400 "), "{answer}");
    assert!(seen.is_empty(), "{seen:?}");
}

#[tokio::test]
async fn a_folded_header_is_refused() {
    for fold in [" folded", "\tfolded", " content-length: 5"] {
        refused(&format!("x: 1\r\n{fold}\r\n\r\nhello")).await;
    }
    refused("transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn space_before_a_colon_is_refused() {
    for line in [
        "content-length : 5",
        "content-length\t: 5",
        "transfer-encoding : chunked",
        " x: 1",
    ] {
        refused(&format!("{line}\r\n\r\nhello")).await;
    }
}

#[tokio::test]
async fn a_header_without_a_proper_name_is_refused() {
    for line in ["x y: 1", "x\0y: 1", "x(y): 1", ": 1", "x", "\u{e9}: 1"] {
        refused(&format!("{line}\r\n\r\nhello")).await;
    }
}

#[tokio::test]
async fn a_bare_carriage_return_is_refused() {
    for line in [
        "x: 1\rcontent-length: 5",
        "x: 1\r\r\n",
        "x: 1\r \r\n",
        "x: 1\n\r: 2",
    ] {
        refused(&format!("{line}\r\n\r\nhello")).await;
    }
}

#[tokio::test]
async fn a_zero_in_a_value_is_refused() {
    refused("x: a\0b\r\n\r\nhello").await;
}

#[tokio::test]
async fn bare_line_feeds_end_lines_and_reach_no_app() {
    let fixture = Fixture::new().await;
    let request = head(&fixture, "GET /") + "x: 1\r\nconnection: close\r\n\r\n";
    let (answer, seen) = smuggle(&fixture, request.replace("\r\n", "\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].replace("\r\n", "").contains('\n'), "{seen:?}");
    assert!(seen[0].contains("x: 1\r\n"), "{seen:?}");
}

#[tokio::test]
async fn chunk_extensions_end_at_the_proxy() {
    for extension in [";x=1", "; x=\"1\"", " ;x", ";"] {
        exactly_one(
            &format!("{CHUNKED}\r\nconnection: close\r\n\r\n5{extension}\r\nhello\r\n0{extension}\r\n\r\n"),
            CHUNKED,
            "5\r\nhello\r\n0\r\n\r\n",
        )
        .await;
    }
}

/// The request is chunked, and its body goes wrong at some point: the app must see it break off.
async fn never_whole(chunks: &str) {
    let fixture = Fixture::new().await;
    let mut stream = raw(&fixture).await;
    let request = format!("{}{CHUNKED}\r\n\r\n{chunks}", head(&fixture, "POST /"));
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    let body = app.rest().await.expect("closed");
    let shown = String::from_utf8_lossy(&body);
    assert!(!body.ends_with(b"0\r\n\r\n"), "{chunks:?}: {shown:?}");
    let answer = read_to_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks:?}: {answer}");
    until(|| fixture.live() == 0).await;
}

#[tokio::test]
async fn a_line_feed_in_a_chunk_extension_breaks_the_request() {
    never_whole("5;\nhello\r\n0\r\n\r\n").await;
    never_whole("5;a\nb\r\nhello\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_chunk_size_that_is_no_size_breaks_the_request() {
    for size in ["zz", "-5", "+5", "0x5", "5_0", "fffffffffffffffff", "", " "] {
        never_whole(&format!("{size}\r\nhello\r\n0\r\n\r\n")).await;
    }
}

#[tokio::test]
async fn a_chunk_that_does_not_end_where_it_says_breaks_the_request() {
    for chunks in [
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
    ] {
        never_whole(chunks).await;
    }
}

#[tokio::test]
async fn endless_chunk_extensions_break_the_request() {
    never_whole(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(64 << 10))).await;
}

#[tokio::test]
async fn trailers_bring_no_header_of_the_platform_in() {
    let fixture = Fixture::new().await;
    let request = format!(
        "{}{CHUNKED}\r\ntrailer: x-aws-proxy-port, x-sum, host\r\nconnection: close\r\n\r\n\
         0\r\nx-aws-proxy-port: 1\r\nx-sum: 7\r\nhost: other\r\n\r\n",
        head(&fixture, "POST /")
    );
    let (_, seen) = smuggle(&fixture, request.as_bytes()).await;
    assert_eq!(seen.len(), 1);
    assert!(
        seen[0].ends_with("\r\n\r\n0\r\nx-sum: 7\r\n\r\n"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn the_absolute_form_names_the_same_host() {
    let fixture = Fixture::new().await;
    let request = head(&fixture, &format!("GET https://{}/path?q", host(ENDPOINT)));
    let (_, seen) = smuggle(&fixture, (request + "connection: close\r\n\r\n").as_bytes()).await;
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with("GET /path?q HTTP/1.1\r\n"), "{seen:?}");
    assert_eq!(seen[0].matches("host: ").count(), 1, "{seen:?}");
}

#[tokio::test]
async fn an_absolute_form_that_differs_from_its_host_is_refused() {
    let fixture = Fixture::new().await;
    for target in [
        format!("https://{}/", host(OTHER_ENDPOINT)),
        format!("https://{}:81/", host(ENDPOINT)),
        format!("https://user@{}/", host(ENDPOINT)),
        "https://127.0.0.1/".to_owned(),
    ] {
        let request = head(&fixture, &format!("GET {target}")) + "connection: close\r\n\r\n";
        refused_as(&fixture, request.as_bytes(), "HTTP/1.1 400 ").await;
    }
}

#[tokio::test]
async fn an_authority_as_the_target_is_a_request_for_the_root() {
    let fixture = Fixture::new().await;
    let request = head(&fixture, &format!("GET {}", host(ENDPOINT))) + "connection: close\r\n\r\n";
    let (_, seen) = smuggle(&fixture, request.as_bytes()).await;
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with("GET / HTTP/1.1\r\n"), "{seen:?}");
    let other =
        head(&fixture, &format!("GET {}", host(OTHER_ENDPOINT))) + "connection: close\r\n\r\n";
    refused_as(&fixture, other.as_bytes(), "HTTP/1.1 400 ").await;
}

/// A request with these lines for a `Host`.
fn with_hosts(fixture: &Fixture, hosts: &str) -> String {
    let line = format!("host: {}\r\n", host(ENDPOINT));
    head(fixture, "GET /").replace(&line, hosts) + "connection: close\r\n\r\n"
}

#[tokio::test]
async fn a_request_with_two_hosts_is_refused() {
    let fixture = Fixture::new().await;
    let (ours, others) = (host(ENDPOINT), host(OTHER_ENDPOINT));
    for hosts in [
        format!("host: {ours}\r\nhost: {ours}\r\n"),
        format!("host: {ours}\r\nhost: {others}\r\n"),
        format!("host: {ours}\r\nHOST: {others}\r\n"),
        format!("host: {ours}, {others}\r\n"),
    ] {
        refused_as(
            &fixture,
            with_hosts(&fixture, &hosts).as_bytes(),
            "HTTP/1.1 400 ",
        )
        .await;
    }
}

#[tokio::test]
async fn a_request_without_a_usable_host_is_refused() {
    let fixture = Fixture::new().await;
    let ours = host(ENDPOINT);
    for hosts in [
        String::new(),
        "host:\r\n".to_owned(),
        format!("host: {ours} x\r\n"),
        format!("host: user@{ours}\r\n"),
        format!("host: https://{ours}\r\n"),
        format!("host: {ours}/path\r\n"),
        format!("host : {ours}\r\n"),
        format!("x: 1\r\n host: {ours}\r\n"),
    ] {
        refused_as(
            &fixture,
            with_hosts(&fixture, &hosts).as_bytes(),
            "HTTP/1.1 400 ",
        )
        .await;
    }
}

#[tokio::test]
async fn a_host_that_tls_did_not_name_is_refused() {
    let fixture = Fixture::new().await;
    for name in [
        host(OTHER_ENDPOINT),
        format!("x.{}", host(ENDPOINT)),
        "localhost".to_owned(),
    ] {
        let request = with_hosts(&fixture, &format!("host: {name}\r\n"));
        refused_as(&fixture, request.as_bytes(), "HTTP/1.1 421 ").await;
    }
}

#[tokio::test]
async fn the_host_is_what_decides_where_tls_named_none() {
    let fixture = Fixture::new().await;
    let mut stream = connect(&fixture, "127.0.0.1", "http/1.1").await;
    let request = with_hosts(&fixture, &format!("host: {}\r\n", host(OTHER_ENDPOINT)));
    stream.write_all(request.as_bytes()).await.expect("write");
    let answer = read_to_close(&mut stream).await;
    assert!(answer.ends_with("Token authentication failed"), "{answer}");
    assert_eq!(fixture.opens(), 0);
}

#[tokio::test]
async fn a_request_line_with_anything_more_is_refused() {
    let fixture = Fixture::new().await;
    for line in [
        "GET / HTTP/1.1 HTTP/1.1",
        "GET /a b",
        "GET",
        "G\0ET /",
        "GET /\0",
        "GET /\x7f",
        "GET(/) /",
        "GET / HTTP/2.0\r\nx: 1\r\ny: HTTP/1.1",
    ] {
        let request = head(&fixture, line) + "connection: close\r\n\r\n";
        refused_as(&fixture, request.as_bytes(), "HTTP/1.1 400 ").await;
    }
}

#[tokio::test]
async fn pipelined_requests_are_told_apart_and_each_is_judged() {
    let fixture = Fixture::new().await;
    let request = format!(
        "{}content-length: 5\r\n\r\nhello{}\r\nGET /no-token HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        head(&fixture, "POST /one"),
        head(&fixture, "GET /two"),
        host(ENDPOINT)
    );
    let (answer, seen) = smuggle(&fixture, request.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    assert!(
        answer.ends_with("Request missing authentication"),
        "{answer}"
    );
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(
        seen.iter()
            .any(|seen| seen.starts_with("POST /one ") && seen.ends_with("\r\n\r\nhello"))
    );
    assert!(
        seen.iter()
            .any(|seen| seen.starts_with("GET /two ") && seen.ends_with("\r\n\r\n"))
    );
}

#[tokio::test]
async fn an_upgrade_that_is_declined_hides_nothing() {
    let fixture = Fixture::new().await;
    let ask = format!(
        "{}connection: upgrade\r\nupgrade: websocket\r\n\r\n\
         GET /hidden HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        head(&fixture, "GET /chat"),
        host(ENDPOINT)
    );
    let mut stream = raw(&fixture).await;
    stream.write_all(ask.as_bytes()).await.expect("write");
    let mut app = fixture.app().await;
    app.head().await;
    let words = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno";
    app.stream.write_all(words).await.expect("write");
    read_until(&mut stream, "\r\n\r\nno").await;
    let answer = read_to_close(&mut stream).await;
    assert!(
        answer.ends_with("Request missing authentication"),
        "{answer}"
    );
    assert_eq!(app.rest().await.expect("rest"), b"");
    assert_eq!(fixture.opens(), 1);
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_an_ordinary_request() {
    let fixture = Fixture::new().await;
    let request = head(&fixture, "GET /")
        + "connection: upgrade, http2-settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let (answer, seen) = smuggle(&fixture, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(
        !seen[0].contains("upgrade") && !seen[0].contains("http2-settings"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_hop_by_hop_list_takes_no_platform_header_off() {
    // What `connection` lists is removed, but only after it was judged.
    let fixture = Fixture::new().await;
    let request = head(&fixture, "GET /")
        + "connection: close, host, x-aws-proxy-auth, x-aws-proxy-port\r\nx-aws-proxy-port: 22\r\n\r\n";
    let answer = raw_exchange(&fixture, &request).await;
    assert!(answer.ends_with("Access to port denied"), "{answer}");
    let request = head(&fixture, "GET /") + "connection: close, host, x-amzn-requestid\r\n\r\n";
    let (_, seen) = smuggle(&fixture, request.as_bytes()).await;
    assert!(
        seen[0].contains(&format!("host: {}\r\n", host(ENDPOINT))),
        "{seen:?}"
    );
    assert!(seen[0].contains("x-amzn-requestid: "), "{seen:?}");
}
