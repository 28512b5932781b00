"""A browser in front of an app in a MicroVM. What a browser can do in general: tests/websocket/test_browser.py."""

import json

import pytest
from harness.browser import Browser
from harness.endpoint import TOKEN_HEADER
from test_protocols import protocols

# The fixture of test_protocols is this file's as well: one more MicroVM of the same image.
__all__ = ["protocols"]
MARKER = "lambda-microvms"
WEBSOCKET_PORT, HTTP_PORT = 8080, 8081


@pytest.fixture(scope="module")
def browser(cloud):
    # Of a bundle of CAs the browser would take the first alone.
    with Browser(cloud.environment["DORMOUSE_CA_FILE"]) as browser:
        yield browser


def offer(token, *more):
    return [MARKER, f"{MARKER}.authentication.{token}", f"{MARKER}.port.{WEBSOCKET_PORT}", *more]


def test_websocket_of_a_page(browser, protocols):
    talk = browser.websocket(f"wss://{protocols.address}/chat", offer(protocols.token(), "my-app"), ["hello", "again"])
    headers = dict(json.loads(talk["got"][0]))
    assert headers["sec-websocket-protocol"] == "my-app"
    assert protocols.token() not in str(headers)
    assert talk["got"][1] == "hello"
    assert (talk["protocol"], talk["code"], talk["clean"]) == (MARKER, 1000, True)


def test_websocket_of_a_page_with_a_bad_token(browser, protocols):
    talk = browser.websocket(f"wss://{protocols.address}/chat", offer("not-a-token"), ["hello"])
    assert (talk["got"], talk["code"], talk["clean"]) == ([], 1006, False)


def test_websocket_of_a_page_wakes_its_microvm(browser, protocols):
    protocols.suspend()
    protocols.wait("SUSPENDED")
    talk = browser.websocket(f"wss://{protocols.address}/chat", offer(protocols.token()), ["hello"])
    assert (len(talk["got"]), talk["code"], talk["clean"]) == (1, 1000, True)


def test_page_that_fetches(browser, protocols):
    headers = {TOKEN_HEADER: protocols.token(), "X-aws-proxy-port": str(HTTP_PORT)}
    browser.open(f"https://{protocols.address}/", headers)
    answer = browser.run("fetch('/again', {headers: given[0]}).then(answer => answer.json())", headers)
    assert (answer["path"], answer["method"]) == ("/again", "GET")
