"""A headless Chromium that trusts one more CA, driven by the DevTools protocol."""

import contextlib
import json
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

# Nothing but the pages of the tests: no services of the vendor's, no QUIC, no sandbox (which root may not have).
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0",
]
CONVERSATION = """new Promise(done => {
    const [address, protocols, messages] = given, got = [];
    const socket = new WebSocket(address, protocols);
    socket.onopen = () => messages.forEach(message => socket.send(message));
    socket.onmessage = event => {
        got.push(event.data);
        if (got.length == messages.length) socket.close(1000);
    };
    socket.onclose = event => done({got, protocol: socket.protocol, code: event.code, clean: event.wasClean});
})"""
START_TIMEOUT_S = 60
CALL_TIMEOUT_S = 120


class Browser:
    """One page."""

    def __init__(self, ca_file):
        self.calls = 0
        with contextlib.ExitStack() as stack:
            # The browser's helpers end by themselves, and may still write for a moment.
            folder = tempfile.TemporaryDirectory(prefix="dormouse-browser-", ignore_cleanup_errors=True)
            home = Path(stack.enter_context(folder))
            trust(home, ca_file)
            command = ["chromium", *OPTIONS, f"--user-data-dir={home / 'profile'}", "about:blank"]
            self.process = subprocess.Popen(
                command, env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(self.process.wait)
            stack.callback(self.process.kill)
            port = self.wait_for_port(home / "profile/DevToolsActivePort")
            page = connect(page_address(port), max_size=None, proxy=None, compression=None)
            self.socket = stack.enter_context(page)
            self.stack = stack.pop_all()

    def wait_for_port(self, file):
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if file.exists() and (lines := file.read_text().splitlines()):
                return int(lines[0])
            time.sleep(0.05)
        raise RuntimeError("Chromium did not start")

    def call(self, method, **parameters):
        """One call of the DevTools protocol; events are not looked at."""
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": parameters}))
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while True:
            answer = json.loads(self.socket.recv(timeout=deadline - time.monotonic()))
            if answer.get("id") == self.calls:
                break
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, address, headers=None):
        """Goes to a page, with these headers, and waits until it is there."""
        self.call("Network.enable")
        self.call("Network.setExtraHTTPHeaders", headers=headers or {})
        if error := self.call("Page.navigate", url=address).get("errorText"):
            raise RuntimeError(f"{address}: {error}")
        self.run("new Promise(done => document.readyState == 'complete' ? done() : onload = done)")
        self.call("Network.setExtraHTTPHeaders", headers={})

    def run(self, script, *given):
        """The value that a script comes to, awaited if it is a promise. It finds `given` under that name."""
        source = f"(async given => {script})({json.dumps(given)})"
        answer = self.call("Runtime.evaluate", expression=source, awaitPromise=True, returnByValue=True)
        if problem := answer.get("exceptionDetails"):
            raise RuntimeError(problem["exception"].get("description", problem["text"]))
        return answer["result"].get("value")

    def websocket(self, address, protocols, messages):
        """Opens a WebSocket, sends `messages`, and closes when as many have come; tells what came of it."""
        return self.run(CONVERSATION, address, protocols, messages)

    def close(self):
        self.stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def trust(home, ca_file):
    """Puts the CA where a user's certificates are."""
    database = home / ".pki/nssdb"
    database.mkdir(parents=True)
    subprocess.run(["certutil", "-d", f"sql:{database}", "-N", "--empty-password"], check=True)
    subprocess.run(["certutil", "-d", f"sql:{database}", "-A", "-n", "dormouse", "-t", "C,,", "-i", ca_file], check=True)


def page_address(port):
    """Where the page's own DevTools socket is."""
    listed = subprocess.run(["curl", "--silent", "--noproxy", "*", f"http://127.0.0.1:{port}/json/list"],
                            capture_output=True, text=True, check=True).stdout
    return next(target["webSocketDebuggerUrl"] for target in json.loads(listed) if target["type"] == "page")
