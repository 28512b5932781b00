"""Does a piece of work every few seconds, and tells at port 8080 how often it has. Time that the microVM spends asleep
is not made up for: after a pause the next run is the next one due."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

EVERY_S = 2
runs = []


def work():
    runs.append(time.time())
    del runs[:-100]
    print("ran", len(runs), flush=True)


def schedule():
    due = time.monotonic()
    while True:
        work()
        due = max(due + EVERY_S, time.monotonic())
        time.sleep(max(0, due - time.monotonic()))


class Status(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"runs": len(runs), "last": runs[-1] if runs else None}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


threading.Thread(target=schedule, daemon=True).start()
ThreadingHTTPServer(("0.0.0.0", 8080), Status).serve_forever()
