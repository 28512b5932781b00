"""Tells the end-to-end tests what a guest sees: its identity, its network, its requests, the passing of time."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

CHUNK = 64 << 10
TICK_S = 0.05
GAP_S = 1.0


class Watch:
    """Samples the clock and the host name all the time, and notes each moment at which either jumps."""

    def __init__(self):
        self.samples = 0
        self.jumps = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        last = (time.time(), socket.gethostname())
        while True:
            time.sleep(TICK_S)
            now = (time.time(), socket.gethostname())
            if abs(now[0] - last[0]) > GAP_S or now[1] != last[1]:
                self.jumps.append({"samples": self.samples, "from": last, "to": now})
            self.samples += 1
            last = now


class State:
    def __init__(self):
        self.counter = 0
        self.lock = threading.Lock()
        self.watch = Watch()
        self.ballast = []
        self.cut_uploads = 0
        self.alarms = []
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e9)"])

    def visit(self):
        with self.lock:
            self.counter += 1
            return self.counter


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.serve("get")

    def do_POST(self):
        self.serve("post")

    def serve(self, method):
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query))
        page = getattr(self, f"{method}_{url.path.strip('/') or 'index'}", None)
        if page is None:
            self.answer({"error": "no such page"}, status=404)
        else:
            page()


    def get_index(self):
        self.answer({"counter": self.server.state.visit()})

    def get_state(self):
        state, note = self.server.state, Path("note.txt")
        self.answer({
            "counter": state.counter,
            "file": note.read_text() if note.exists() else None,
            "child": state.child.pid if state.child.poll() is None else None,
            "hostname": socket.gethostname(),
            "time": time.time(),
            "monotonic": time.monotonic(),
            "boottime": time.clock_gettime(time.CLOCK_BOOTTIME),
            "alarms": state.alarms,
            "random": os.urandom(32).hex(),
            "uid": os.getuid(),
            "cut_uploads": state.cut_uploads,
        })

    def post_alarm(self):
        """Notes when a timer of a monotonic clock, `seconds` from now, has run out."""
        alarms = self.server.state.alarms
        threading.Timer(float(self.query["seconds"]), lambda: alarms.append(time.time())).start()
        self.answer({"set": True})

    def post_file(self):
        body = self.read_body()
        with open("note.txt", "wb") as note:
            note.write(body)
            if "synced" in self.query:
                note.flush()
                os.fsync(note.fileno())
        self.answer({"written": len(body)})

    def get_watch(self):
        watch = self.server.state.watch
        self.answer({"samples": watch.samples, "jumps": watch.jumps})

    def get_environment(self):
        self.answer(dict(os.environ))

    def post_ballast(self):
        """Makes this much memory dirty with what cannot be compressed or shared."""
        self.server.state.ballast.append(os.urandom(int(self.query["mib"]) << 20))
        self.answer({"pieces": len(self.server.state.ballast)})

    def get_ballast(self):
        digest = hashlib.sha256(b"".join(self.server.state.ballast))
        self.answer({"sha256": digest.hexdigest()})

    def post_exit(self):
        self.answer({"exiting": True})
        threading.Timer(0.2, os._exit, [int(self.query["code"])]).start()


    def get_request(self):
        self.answer({"headers": self.headers.items(), "peer": self.client_address[0]})

    def post_upload(self):
        digest, size = hashlib.sha256(), 0
        for piece in self.pieces():
            digest.update(piece)
            size += len(piece)
        if size < int(self.headers.get("Content-Length", 0)):
            self.server.state.cut_uploads += 1
            self.close_connection = True
            return
        self.answer({"bytes": size, "sha256": digest.hexdigest()})

    def get_download(self):
        size = int(self.query["bytes"])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for start in range(0, size, CHUNK):
            self.wfile.write(b"d" * min(CHUNK, size - start))

    def get_stream(self):
        """Sends `count` lines, `pause` seconds apart, each as soon as it is there."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(int(self.query["count"])):
            line = f"{number}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
            time.sleep(float(self.query["pause"]))
        self.wfile.write(b"0\r\n\r\n")


    def post_connect(self):
        target = (self.query["host"], int(self.query["port"]))
        try:
            socket.create_connection(target, timeout=float(self.query.get("timeout", 3))).close()
            outcome = "open"
        except OSError as error:
            outcome = type(error).__name__
        self.answer({"outcome": outcome})

    def post_fetch(self):
        try:
            with urllib.request.urlopen(self.query["url"], timeout=20) as response:
                self.answer({"status": response.status, "bytes": len(response.read())})
        except OSError as error:
            self.answer({"status": None, "error": str(error)})


    def pieces(self):
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(CHUNK, left))
            if not piece:
                return
            left -= len(piece)
            yield piece

    def read_body(self):
        return b"".join(self.pieces())

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main():
    server = Server(("127.0.0.1", 8080), Handler)
    server.state = State()
    print("probe: listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
