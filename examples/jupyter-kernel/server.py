"""One Jupyter kernel behind HTTP: POST code, get what it printed and what it came to. Variables stay."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer

from jupyter_client.manager import start_new_kernel

CODE_BYTES_MAX = 1 << 20
TIMEOUT_S = 120

manager, client = start_new_kernel(kernel_name="python3")


def execute(code):
    result = {"output": "", "result": None, "error": None}

    def hook(message):
        content = message["content"]
        if message["msg_type"] == "stream":
            result["output"] += content["text"]
        elif message["msg_type"] == "execute_result":
            result["result"] = content["data"].get("text/plain")
        elif message["msg_type"] == "error":
            result["error"] = f"{content['ename']}: {content['evalue']}"

    client.execute_interactive(code, timeout=TIMEOUT_S, output_hook=hook)
    return result


class Door(BaseHTTPRequestHandler):
    def do_POST(self):
        length = min(int(self.headers.get("content-length", 0)), CODE_BYTES_MAX)
        body = json.dumps(execute(self.rfile.read(length).decode())).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


execute("import json, math, re, statistics")
HTTPServer(("0.0.0.0", 8080), Door).serve_forever()
