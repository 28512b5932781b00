"""A web server with state in all the places that a snapshot must keep: memory, a file and a process.

GET  /       counts the visit and says the number
POST /file   writes the body to a file
GET  /file   reads it
GET  /state  shows everything
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NOTE = Path(os.environ.get("NOTE", "note.txt"))
NOTE_BYTES_MAX = 1 << 20
TICKER = "import time\nwhile True:\n    print(flush=True)\n    time.sleep(1)\n"


class Ticker:
    """A process of its own that says something each second, and how often it has."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", TICKER], stdout=subprocess.PIPE)
        self.ticks = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for _ in self.process.stdout:
            self.ticks += 1


class Counter:
    """A number that lives in memory only."""

    def __init__(self):
        self.value = 0
        self._lock = threading.Lock()

    def next(self):
        with self._lock:
            self.value += 1
            return self.value


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/":
            self.answer({"counter": self.server.counter.next()})
        elif self.path == "/file":
            self.answer({"file": read_note()})
        elif self.path == "/state":
            self.answer(self.state())
        else:
            self.answer({"error": "no such page"}, status=404)

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        if self.path != "/file" or length > NOTE_BYTES_MAX:
            self.close_connection = True
            self.answer({"error": "POST up to 1 MiB to /file"}, status=400)
            return
        NOTE.write_bytes(self.rfile.read(length))
        self.answer({"written": length})

    def state(self):
        ticker = self.server.ticker
        return {
            "counter": self.server.counter.value,
            "file": read_note(),
            "child_pid": ticker.process.pid,
            "child_alive": ticker.process.poll() is None,
            "child_ticks": ticker.ticks,
            "hostname": socket.gethostname(),
            "time": time.time(),
            "random": os.urandom(16).hex(),
            "user": os.getuid(),
        }

    def answer(self, content, status=200):
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def read_note():
    return NOTE.read_text(errors="replace") if NOTE.exists() else None


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
    server.counter = Counter()
    server.ticker = Ticker()
    print("hello: listening on 8080")
    server.serve_forever()


if __name__ == "__main__":
    main()
