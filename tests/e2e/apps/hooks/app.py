"""Answers its hooks as its tests want, and tells which were called.

The variable PLAN holds answers by hook, each used once and the last one for good; 200 where there is none. An answer
is a status, or `hold` to keep the request open, or `exit` to end. `POST /plan/HOOK` with a list puts new ones in place.
A run hook whose payload is an answer gives that one.
"""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PREFIX = "/aws/lambda-microvms/runtime/v1/"
HOLD_S = 1000
PORTS = (8080, 9000)


class State:
    def __init__(self):
        self.plan = json.loads(os.environ.get("PLAN", "{}"))
        self.calls = []
        # What only the validation touches, so that a launch has something to read ahead.
        self.ballast = bytearray(os.urandom(int(os.environ.get("BALLAST_MIB", "0")) << 20))

    def answer(self, hook, body):
        payload = json.loads(body).get("runHookPayload") if body else None
        if payload in ("hold", "exit") or (payload or "").isdigit():
            return payload
        answers = self.plan.get(hook) or [200]
        return answers.pop(0) if len(answers) > 1 else answers[0]


STATE = State()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/calls":
            return self.reply(200, STATE.calls)
        if self.path == "/ballast":
            return self.reply(200, sum(STATE.ballast[::4096]))
        return self.reply(200, {"pid": os.getpid()})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/plan/"):
            STATE.plan[self.path.removeprefix("/plan/")] = json.loads(body)
            return self.reply(200, {})
        if self.path.startswith("/exit/"):
            self.reply(200, {})
            threading.Timer(0.1, os._exit, [int(self.path.removeprefix("/exit/"))]).start()
            return None
        return self.hook(self.path.removeprefix(PREFIX), body)

    def hook(self, name, body):
        STATE.calls.append({
            "hook": name, "body": body.decode(), "path": self.path, "peer": self.client_address[0],
            "port": self.client_address[1], "headers": {key.lower(): value for key, value in self.headers.items()},
        })
        if name == "validate":
            Path("validated").write_text("by the validate hook")
            sum(STATE.ballast[::4096])
        answer = STATE.answer(name, body)
        print(f"{name}: {answer}", flush=True)
        if answer == "hold":
            time.sleep(HOLD_S)
        elif answer == "exit":
            os._exit(3)
        return self.reply(int(answer), {"validated": Path("validated").exists()})

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    servers = [ThreadingHTTPServer(("127.0.0.1", port), Handler) for port in PORTS]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    main()
