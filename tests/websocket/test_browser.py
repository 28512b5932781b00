"""A browser's WebSockets and requests through the proxy, without microVMs."""

import json
import threading

import pytest
from harness.browser import Browser
from harness.host_proxy import host_proxy
from websockets.sync.server import serve

MARKER = "lambda-microvms"
ABNORMAL = 1006


def app(connection):
    """Says first which subprotocols it was offered, then sends back what it gets."""
    connection.send(json.dumps(connection.request.headers.get("Sec-WebSocket-Protocol")))
    for message in connection:
        connection.send(message)


def page(connection, request):
    """Answers what is no WebSocket."""
    if "Upgrade" not in request.headers:
        return connection.respond(200, f"a page at {request.path}\n")
    return None


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    def select(_, offered):
        return "my-app" if "my-app" in offered else None
    with serve(app, "127.0.0.1", 0, process_request=page, select_subprotocol=select) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = "{}:{}".format(*server.socket.getsockname())
        with host_proxy(tmp_path_factory.mktemp("proxy"), origin) as endpoint:
            yield endpoint | {"at": f"{endpoint['host']}:{endpoint['address'].rpartition(':')[2]}"}
        server.shutdown()


@pytest.fixture(scope="module")
def browser(endpoint):
    with Browser(endpoint["ca"]) as browser:
        yield browser


def subprotocols(token, *more):
    return [MARKER, f"{MARKER}.authentication.{token}", f"{MARKER}.port.8080", *more]


def test_websocket_with_a_subprotocol_of_the_apps(browser, endpoint):
    offered = subprotocols(endpoint["token"], "my-app")
    talk = browser.websocket(f"wss://{endpoint['at']}/chat", offered, ["", "hello", "x" * 200_000])
    assert talk["got"] == [json.dumps("my-app"), "", "hello"]
    assert (talk["protocol"], talk["code"], talk["clean"]) == ("my-app", 1000, True)


def test_websocket_whose_app_selects_no_subprotocol(browser, endpoint):
    talk = browser.websocket(f"wss://{endpoint['at']}/chat", subprotocols(endpoint["token"]), ["hello"])
    assert talk["got"] == [json.dumps(None)]
    assert (talk["protocol"], talk["code"], talk["clean"]) == (MARKER, 1000, True)


@pytest.mark.parametrize("offered", [
    subprotocols("not-a-token"), [MARKER, "my-app"], ["my-app"],
], ids=["bad token", "no token", "no marker"])
def test_websocket_that_is_refused(browser, endpoint, offered):
    talk = browser.websocket(f"wss://{endpoint['at']}/chat", offered, ["hello"])
    assert (talk["got"], talk["code"], talk["clean"]) == ([], ABNORMAL, False)


def test_page_that_fetches(browser, endpoint):
    token = {"X-aws-proxy-auth": endpoint["token"]}
    browser.open(f"https://{endpoint['at']}/start", headers=token)
    assert browser.run("document.body.innerText") == "a page at /start\n"
    answers = browser.run("""Promise.all(given[0].map(async headers => {
        const answer = await fetch("/again", {headers});
        return [answer.status, await answer.text(), performance.getEntriesByName(answer.url).pop().nextHopProtocol];
    }))""", [token, {}])
    assert answers[0] == [200, "a page at /again\n", "h2"]
    assert answers[1][:2] == [403, "Request missing authentication"]
