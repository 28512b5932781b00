"""Each protocol that an endpoint carries, with the clients that people use: websockets, grpcio, curl."""

import collections
import contextlib
import importlib.util
import json
import subprocess
import time
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import websockets.exceptions
from conftest import APPS
from harness.artifact import zip_files
from harness.endpoint import TOKEN_HEADER, Connection
from harness.turns import tls_socket
from websockets.sync.client import connect

MARKER = "lambda-microvms"
HTTP, GRPC, TLS = "8081", "8082", "8443"
PORT_HEADER = "X-aws-proxy-port"
GOING_AWAY = 1001
# Software emulation is slow, and no proxy leads to loopback.
PATIENT = {"open_timeout": 60, "ping_timeout": 60, "proxy": None}


def packages(*names):
    """The files of installed Python packages, for an image: only what is Python."""
    files = {}
    for name in names:
        folder = Path(importlib.util.find_spec(name).origin).parent
        for path in folder.rglob("*.py"):
            files[f"packages/{path.relative_to(folder.parent)}"] = path.read_bytes()
    return files


@pytest.fixture(scope="module")
def protocols(cloud, tmp_path_factory):
    """A running MicroVM whose app speaks them all."""
    folder = tmp_path_factory.mktemp("identity")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=app", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    app = {path.name: path.read_bytes() for path in (APPS / "protocols").iterdir() if path.is_file()}
    identity = {"identity.pem": key.read_bytes() + certificate.read_bytes()}
    image = cloud.build_image(zip_files(app | identity | packages("h2", "hpack", "hyperframe", "websockets")))
    with cloud.launch(image, idle=(600, 600, True)) as vm:
        yield vm.running()


def host(vm):
    return vm.address.partition(":")[0]


def port(vm):
    return int(vm.address.partition(":")[2] or 443)


def browser(vm, *more, token=None):
    """A WebSocket as a browser opens it, which can set no header."""
    token = token or vm.token()
    return connect(
        f"ws://{vm.address}/chat", sock=tls_socket(vm.address, vm.cloud.ca_file), compression=None, **PATIENT,
        subprotocols=[MARKER, f"{MARKER}.authentication.{token}", *more])


def seen_by(websocket):
    return {name.lower(): value for name, value in json.loads(websocket.recv(timeout=60))}


def curl(vm, path, *options):
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "60", *options, "--header", f"{TOKEN_HEADER}: {vm.token()}",
         f"https://{vm.address}{path}"],
        capture_output=True, text=True, env=vm.cloud.environment, check=True)
    return done.stdout



def test_websocket_of_a_browser(protocols):
    with browser(protocols, f"{MARKER}.port.8080") as websocket:
        assert websocket.subprotocol == MARKER
        seen = seen_by(websocket)
        assert "sec-websocket-protocol" not in seen
        assert seen["host"].partition(":")[0] == host(protocols)
        assert seen["x-amzn-requestid"]
        for message in ("hello", b"\0" * 100_000, ""):
            websocket.send(message)
            assert websocket.recv(timeout=60) == message
        websocket.close(4000, "done")
    assert websocket.close_code == 4000


def test_websocket_with_a_subprotocol_of_the_apps(protocols):
    with browser(protocols, "talk", "chat") as websocket:
        assert websocket.subprotocol == "chat"
        assert seen_by(websocket)["sec-websocket-protocol"] == "talk, chat"
    with browser(protocols, "talk") as websocket:
        assert websocket.subprotocol == MARKER
        assert seen_by(websocket)["sec-websocket-protocol"] == "talk"


def test_websocket_with_a_token_in_the_header(protocols):
    with connect(
        f"ws://{protocols.address}/chat", sock=tls_socket(protocols.address, protocols.cloud.ca_file), **PATIENT,
        additional_headers={TOKEN_HEADER: protocols.token(), PORT_HEADER: "8080"},
    ) as websocket:
        assert websocket.subprotocol is None
        seen = seen_by(websocket)
        assert not [name for name in seen if name.startswith("x-aws-proxy")]
        # Compressed frames pass as well.
        websocket.send("a" * 100_000)
        assert websocket.recv(timeout=60) == "a" * 100_000


@pytest.mark.parametrize("more, token, status", [
    ([], "not-a-token", 403),
    ([f"{MARKER}.port.0"], None, 400),
    ([f"{MARKER}.port.9999"], None, 502),
])
def test_websocket_that_is_refused(protocols, more, token, status):
    with pytest.raises(websockets.exceptions.InvalidStatus) as refusal:
        browser(protocols, *more, token=token)
    assert refusal.value.response.status_code == status


def test_websocket_outside_its_token(protocols):
    only = protocols.token(ports=[{"port": 8080}])
    with browser(protocols, token=only) as websocket:
        seen_by(websocket)
    with pytest.raises(websockets.exceptions.InvalidStatus) as refusal:
        browser(protocols, f"{MARKER}.port.8081", token=only)
    assert (refusal.value.response.status_code, refusal.value.response.body) == (403, b"Access to port denied")


def test_websocket_over_http_2(protocols):
    """RFC 8441: a stream of HTTP/2 is the WebSocket."""
    with tls_socket(protocols.address, protocols.cloud.ca_file, "h2") as tls:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        connection.initiate_connection()
        tls.sendall(connection.data_to_send())

        # One read may bring several, and what comes after the one that is waited for is waited for later.
        events = collections.deque()

        def until(kind):
            while True:
                while events:
                    if isinstance(event := events.popleft(), kind):
                        return event
                events.extend(connection.receive_data(tls.recv(65536)))
                tls.sendall(connection.data_to_send())

        settings = until(h2.events.RemoteSettingsChanged).changed_settings
        assert settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL].new_value == 1
        connection.send_headers(1, [
            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/chat"),
            (":authority", host(protocols)), ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", f"{MARKER}, {MARKER}.authentication.{protocols.token()}, chat"),
        ])
        tls.sendall(connection.data_to_send())
        headers = dict(until(h2.events.ResponseReceived).headers)
        assert (headers[":status"], headers["sec-websocket-protocol"]) == ("200", "chat")
        assert "sec-websocket-accept" not in headers
        assert b"sec-websocket-key" in until(h2.events.DataReceived).data.lower()
        # A masked text frame, whose mask changes nothing.
        connection.send_data(1, b"\x81\x82\0\0\0\0hi")
        tls.sendall(connection.data_to_send())
        assert until(h2.events.DataReceived).data == b"\x81\x02hi"



@pytest.fixture(scope="module")
def channel(protocols):
    with open(protocols.cloud.ca_file, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    options = [("grpc.ssl_target_name_override", host(protocols)), ("grpc.default_authority", host(protocols))]
    with grpc.secure_channel(f"ipv4:127.0.0.1:{port(protocols)}", credentials, options) as channel:
        yield channel


@pytest.fixture(scope="module")
def metadata(protocols):
    return [(TOKEN_HEADER.lower(), protocols.token()), (PORT_HEADER.lower(), GRPC)]


def test_grpc_unary(channel, metadata):
    answer, call = channel.unary_unary("/echo.Echo/Unary").with_call(b"hello", metadata=metadata, timeout=60)
    assert answer == b"hello"
    assert dict(call.initial_metadata())["saw-te"] == "trailers"


def test_grpc_client_stream(channel, metadata):
    answer = channel.stream_unary("/echo.Echo/Join")(iter([b"a", b"b", b"c"]), metadata=metadata, timeout=60)
    assert answer == b"a,b,c"


def test_grpc_server_stream(channel, metadata):
    times = []
    for number, message in enumerate(channel.unary_stream("/echo.Echo/Count")(b"3", metadata=metadata, timeout=60)):
        assert message == b"%d" % number
        times.append(time.monotonic())
    assert len(times) == 3
    assert times[-1] - times[0] > 0.5, "each message comes when it is sent, a second after the one before"


def test_grpc_bidirectional_stream(channel, metadata):
    answers = []

    def words():
        """Says the next word once the last one is answered."""
        for count, word in enumerate([b"one", b"two", b"three"]):
            while len(answers) < count:
                time.sleep(0.01)
            yield word

    for answer in channel.stream_stream("/echo.Echo/Talk")(words(), metadata=metadata, timeout=60):
        answers.append(answer)
    assert answers == [b"ONE", b"TWO", b"THREE"]


def test_grpc_status_of_the_apps(channel, metadata):
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/echo.Echo/Fail")(b"", metadata=metadata, timeout=60)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_grpc_refused(channel):
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/echo.Echo/Unary")(b"", timeout=60)
    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "403" in error.value.details()


def test_http_2_is_forced_upon_an_app_that_speaks_only_http_1(protocols):
    forced = ["--http2", "--header", "X-aws-proxy-force-h2: true", "--output", "/dev/null", "--write-out", "%{http_code}"]
    assert curl(protocols, "/", "--header", f"{PORT_HEADER}: {HTTP}", *forced) == "502"
    # The other way round, to one that speaks only HTTP/2: its answer is no gRPC, but it is one.
    assert curl(protocols, "/Unary", "--header", f"{PORT_HEADER}: {GRPC}", *forced) == "200"



@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_trailers_and_what_the_app_sees(protocols, version):
    answer = curl(
        protocols, "/path?q=1", version, "--include", "--header", f"{PORT_HEADER}: {HTTP}", "--header", "TE: trailers",
        "--header", "X-Custom: kept", "--data", "body")
    assert answer.split()[1] == "200", "an interim answer is not passed on"
    seen, end = json.JSONDecoder().raw_decode(answer, answer.index('{"method"'))
    assert "x-after: " in answer[end:].lower(), answer
    assert (seen["method"], seen["path"], seen["bytes"], seen["peer"]) == ("POST", "/path?q=1", 4, "127.0.0.1")
    assert seen["headers"]["x-custom"] == "kept"
    assert seen["headers"]["x-amzn-requestid"]
    assert not [name for name in seen["headers"] if name.startswith("x-aws-proxy") or name == "x-forwarded-for"]


def test_trailers_of_a_request(protocols):
    head = (f"POST / HTTP/1.1\r\nhost: {host(protocols)}\r\n{TOKEN_HEADER}: {protocols.token()}\r\n{PORT_HEADER}: {HTTP}\r\n"
            "transfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n")
    with tls_socket(protocols.address, protocols.cloud.ca_file) as tls:
        tls.sendall(head.encode() + b"2\r\nhi\r\n0\r\nx-sum: 7\r\nx-aws-proxy-auth: secret\r\n\r\n")
        answer = b"".join(iter(lambda: tls.recv(65536), b""))
    assert b'"trailers": {"x-sum": "7"}' in answer


def test_client_that_waits_for_100(protocols):
    seen = curl(protocols, "/", "--http1.1", "--header", f"{PORT_HEADER}: {HTTP}", "--header", "Expect: 100-continue",
                "--data-binary", "a" * 50_000, "--verbose", "--stderr", "-")
    assert "HTTP/1.1 100 Continue" in seen
    assert '"bytes": 50000' in seen


def test_each_event_arrives_when_it_is_sent(protocols):
    connection = Connection(protocols.address, protocols.cloud.ca_file)
    with contextlib.closing(connection):
        connection.request("GET", "/events", headers=protocols.endpoint.headers({PORT_HEADER: HTTP}))
        response = connection.getresponse()
        assert response.getheader("Content-Type") == "text/event-stream"
        times = []
        while line := response.readline():
            if line.startswith(b"id: "):
                times.append(time.monotonic())
    assert len(times) == 3
    assert times[-1] - times[0] > 0.5, "each comes when it is sent, a second after the one before"


def test_app_that_serves_tls_itself(protocols):
    for _ in range(2):
        seen = protocols.endpoint.post("/secret", b"body", **{PORT_HEADER: TLS})
        assert seen.status == 200
        assert (seen.json()["tls"], seen.json()["bytes"]) == (True, 4)



def test_websocket_is_told_to_go_when_its_microvm_falls_asleep(protocols):
    with browser(protocols) as websocket:
        seen_by(websocket)
        protocols.suspend()
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            websocket.recv(timeout=60)
    assert closed.value.rcvd.code == GOING_AWAY
    protocols.wait("SUSPENDED")
    # A WebSocket wakes it like any request.
    with browser(protocols) as websocket:
        seen_by(websocket)
        websocket.send("awake")
        assert websocket.recv(timeout=60) == "awake"
