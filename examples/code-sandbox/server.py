"""Runs the shell command that it is sent, in the workspace. That it may do anything is the point: it has a VM to itself."""

import json
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMAND_BYTES_MAX = 1 << 16
OUTPUT_BYTES_MAX = 1 << 20
TIMEOUT_S = 120


class Door(BaseHTTPRequestHandler):
    def do_POST(self):
        length = min(int(self.headers.get("content-length", 0)), COMMAND_BYTES_MAX)
        command = self.rfile.read(length).decode()
        try:
            done = subprocess.run(
                ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_S)
            self.answer({"exit": done.returncode, "output": done.stdout[:OUTPUT_BYTES_MAX].decode(errors="replace")})
        except subprocess.TimeoutExpired:
            self.answer({"exit": None, "output": f"no end within {TIMEOUT_S} s"})

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", 8080), Door).serve_forever()
