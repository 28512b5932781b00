"""The endpoint: who may pass, what the app sees, and what becomes of requests that are not well."""

import concurrent.futures
import contextlib
import hashlib
import os
import ssl
import subprocess
import time
import uuid

import pytest
from harness.endpoint import TOKEN_HEADER, Connection, Endpoint, tls_context
from harness.polling import until

MISSING = (403, b"Request missing authentication")
FAILED = (403, b"Token authentication failed")
PORT_DENIED = (403, b"Access to port denied")
UNREACHABLE = (502, b"")
# The server ends those that are slow to send a head after 15 s. Whoever waits for that has been kept waiting.
SLOW_END_S = 12


def outcome(answer):
    return answer.status, answer.body


@pytest.fixture(scope="module")
def pair(cloud, probe_image):
    """Two running MicroVMs that all tests of this file share."""
    with cloud.launch(probe_image) as first, cloud.launch(probe_image) as second:
        yield first.running(), second.running()


@pytest.fixture
def shared(pair):
    return pair[0]



def test_no_token(shared):
    assert outcome(shared.with_token(None).get("/")) == MISSING


@pytest.mark.parametrize("token", ["not-a-token", "", "a.b.c.d.e", "é"])
def test_garbage_token(shared, token):
    status, _ = outcome(shared.with_token(token.encode()).get("/"))
    assert status == 403


def test_token_for_another_vm(pair):
    first, second = pair
    assert outcome(first.with_token(second.token()).get("/")) == FAILED
    assert first.with_token(first.token()).get("/").status == 200


def test_unknown_host(shared, cloud):
    _, _, rest = shared.address.partition(".")
    stranger = Endpoint(f"{uuid.uuid4()}.{rest}", shared.token(), cloud.ca_file)
    assert outcome(stranger.get("/")) == FAILED


def test_host_outside_the_domain_gets_no_answer_of_an_app(shared):
    answer = shared.endpoint.get("/", Host="example.com")
    assert answer.status in (400, 403, 421)


def test_port_outside_the_token(shared):
    only_8080 = shared.with_token(shared.token(ports=[{"port": 8080}]))
    assert only_8080.get("/").status == 200
    assert outcome(only_8080.get("/", **{"X-aws-proxy-port": "22"})) == PORT_DENIED


def test_port_within_a_range_on_which_nothing_listens(shared):
    ranged = shared.with_token(shared.token(ports=[{"range": {"startPort": 9000, "endPort": 9010}}]))
    assert outcome(ranged.get("/", **{"X-aws-proxy-port": "9005"})) == UNREACHABLE


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "80 80"])
def test_malformed_port(shared, port):
    assert shared.endpoint.get("/", **{"X-aws-proxy-port": port}).status == 400


def test_tls_1_2_works_and_1_1_does_not(shared, cloud):
    for version, works in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_1, False)):
        context = tls_context(cloud.ca_file)
        # What the client offers must be the server's to refuse.
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        connection = Connection(shared.address, cloud.ca_file)
        connection._context = context
        with contextlib.nullcontext() if works else pytest.raises((ssl.SSLError, ConnectionError)):
            connection.request("GET", "/", headers=shared.endpoint.headers())
            assert connection.getresponse().status == 200


def test_certificate_is_of_the_internal_authority(shared, cloud):
    connection = Connection(shared.address, cloud.ca_file)
    connection._context = ssl.create_default_context()
    with pytest.raises(ssl.SSLCertVerificationError):
        connection.request("GET", "/")



def test_app_sees_the_request_without_the_proxys_own_headers(shared):
    answer = shared.endpoint.get("/request", **{"X-Custom": "kept", "X-aws-proxy-port": "8080", "traceparent": "00-x"})
    seen = answer.json()
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert seen["peer"] == "127.0.0.1"
    assert headers["host"].split(":")[0] == shared.address.split(":")[0]
    assert headers["x-custom"] == "kept"
    assert headers["traceparent"] == "00-x"
    assert uuid.UUID(headers["x-amzn-requestid"])
    assert not [name for name in headers if name.startswith("x-aws-proxy-")]
    assert "x-forwarded-for" not in headers


def test_http_2(shared, cloud):
    done = subprocess.run(
        ["curl", "--silent", "--http2", "--write-out", "%{http_version}", "--output", os.devnull,
         "--header", f"{TOKEN_HEADER}: {shared.token()}", f"https://{shared.address}/"],
        capture_output=True, text=True, timeout=60, env=cloud.environment, check=True)
    assert done.stdout == "2"


def test_large_body_up(shared):
    body = os.urandom(24 << 20)
    answer = shared.endpoint.post("/upload", body).json()
    assert answer == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def test_large_body_down(shared):
    answer = shared.endpoint.get("/download?bytes=25000001")
    assert (answer.status, len(answer.body)) == (200, 25000001)


def test_answer_streams(shared, cloud):
    connection = Connection(shared.address, cloud.ca_file)
    with contextlib.closing(connection):
        connection.request("GET", "/stream?count=3&pause=2", headers=shared.endpoint.headers())
        response = connection.getresponse()
        lines, times = [], []
        while line := response.readline():
            lines.append(line)
            times.append(time.monotonic())
    assert lines == [b"0\n", b"1\n", b"2\n"]
    assert times[-1] - times[0] > 1, "the first line comes before the last is made"


def test_many_requests_at_once(shared):
    before = shared.endpoint.get("/state").json()["counter"]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: shared.endpoint.get("/").json()["counter"], range(100)))
    assert sorted(answers) == list(range(before + 1, before + 101))



def test_header_of_100_megabytes(shared, cloud):
    """It is refused, or the connection closed, long before it is all there."""
    connection = Connection(shared.address, cloud.ca_file)
    with contextlib.closing(connection):
        connection.connect()
        head = f"GET / HTTP/1.1\r\nHost: {shared.address}\r\nX-Large: "
        connection.sock.sendall(head.encode())
        sent, piece = 0, b"x" * (1 << 16)
        with contextlib.suppress(OSError):
            while sent < 100 << 20:
                sent += connection.sock.send(piece)
        assert sent < 10 << 20, "the server went on reading"
    assert shared.endpoint.get("/").status == 200


def test_header_of_100_megabytes_on_the_control_api(cloud):
    import socket

    with socket.create_connection(("127.0.0.1", cloud.daemon.api_port), timeout=30) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: ")
        sent, piece = 0, b"x" * (1 << 16)
        with contextlib.suppress(OSError):
            while sent < 100 << 20:
                sent += plain.send(piece)
    assert sent < 10 << 20, "the server went on reading"
    assert "items" in cloud.vms.list_microvms()


def test_body_cut_off_in_the_middle(shared, cloud):
    connection = Connection(shared.address, cloud.ca_file)
    connection.putrequest("POST", "/upload")
    for name, value in shared.endpoint.headers({"Content-Length": str(10 << 20)}).items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b"x" * (1 << 20))
    connection.close()

    until(lambda: shared.endpoint.get("/state").json()["cut_uploads"], "the app is told that the body broke off")
    assert shared.endpoint.post("/upload", b"whole").json()["bytes"] == 5


@pytest.mark.parametrize("framing", [
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked, identity",
])
def test_ambiguous_body_length_is_refused_or_closed(shared, cloud, framing):
    """Two lengths are how requests are smuggled: never may the rest be taken for a request of its own."""
    before = shared.endpoint.get("/state").json()["counter"]
    connection = Connection(shared.address, cloud.ca_file)
    with contextlib.closing(connection):
        connection.connect()
        connection.sock.settimeout(10)
        head = f"POST /upload HTTP/1.1\r\nHost: {shared.address}\r\n{TOKEN_HEADER}: {shared.token()}\r\n{framing}\r\n\r\n"
        smuggled = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sock.sendall(f"{head}0\r\n\r\n{smuggled}".encode())
        with contextlib.suppress(OSError):
            while connection.sock.recv(1 << 16):
                pass
    assert shared.endpoint.get("/state").json()["counter"] == before


def test_slow_sender_does_not_keep_others_waiting(shared, cloud):
    slow = []
    try:
        for _ in range(50):
            connection = Connection(shared.address, cloud.ca_file)
            connection.connect()
            connection.sock.sendall(b"GET / HTTP/1.1\r\nHost: ")
            slow.append(connection)
        began = time.monotonic()
        assert shared.endpoint.get("/").status == 200
        assert time.monotonic() - began < SLOW_END_S
    finally:
        for connection in slow:
            connection.close()
