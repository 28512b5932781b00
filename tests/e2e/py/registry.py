"""Debian's docker-registry on loopback, images made of layers, and a gate in front that misbehaves on demand."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import re
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request

from harness.polling import until

OCI = "application/vnd.oci.image"
USER, PASSWORD = "builder", "correct horse"


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def tar(files):
    """A tar of these files: bytes for content, None for a folder, or a TarInfo with its content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry, data = content if isinstance(content, tuple) else (tarfile.TarInfo(), content)
            entry.name = name
            if data is None and entry.type == tarfile.REGTYPE:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            entry.size = len(data or b"")
            archive.addfile(entry, io.BytesIO(data or b""))
    return out.getvalue()


class Image:
    """An image of plain layer tars, the lowest first."""

    def __init__(self, layers, config=None, architecture="amd64"):
        self.plain = layers
        self.layers = [gzip.compress(layer, compresslevel=1, mtime=0) for layer in layers]
        self.config = json.dumps({
            "os": "linux", "architecture": architecture, "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }).encode()
        self.manifest = json.dumps({
            "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.descriptor(f"{OCI}.config.v1+json", self.config),
            "layers": [self.descriptor(f"{OCI}.layer.v1.tar+gzip", layer) for layer in self.layers],
        }).encode()
        self.platform = {"os": "linux", "architecture": architecture}

    @staticmethod
    def descriptor(kind, content):
        return {"mediaType": kind, "digest": digest(content), "size": len(content)}

    @property
    def digest(self):
        return digest(self.manifest)


def index(images):
    """An index of images for their platforms."""
    kind = f"{OCI}.manifest.v1+json"
    manifests = [{**Image.descriptor(kind, image.manifest), "platform": image.platform} for image in images]
    return json.dumps({"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}).encode()


class Registry:
    """A registry process, with what tests push to it."""

    def __init__(self, folder, port):
        self.port = port
        self.address = f"127.0.0.1:{self.port}"
        config = folder / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\nhttp: {{addr: '{self.address}'}}\n")
        self.process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self.answers, "docker-registry answers", 60)

    def answers(self):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://{self.address}/v2/", timeout=5).close()
            return True
        assert self.process.poll() is None, "docker-registry ended"
        return False

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

    def push(self, repository, tag, image):
        """Pushes an image, or a list of images as an index; returns the digest that the tag stands for."""
        images = image if isinstance(image, list) else [image]
        for each in images:
            for content in [*each.layers, each.config]:
                self.put_blob(repository, content)
            self.put_manifest(repository, each.digest, each.manifest)
        top = index(images) if isinstance(image, list) else image.manifest
        self.put_manifest(repository, tag, top)
        return digest(top)

    def put_blob(self, repository, content):
        begin = urllib.request.Request(f"http://{self.address}/v2/{repository}/blobs/uploads/", method="POST")
        with urllib.request.urlopen(begin, timeout=60) as answer:
            location = answer.headers["Location"]
        joiner = "&" if "?" in location else "?"
        put = urllib.request.Request(f"{location}{joiner}digest={digest(content)}", data=content, method="PUT")
        put.add_header("Content-Type", "application/octet-stream")
        urllib.request.urlopen(put, timeout=120).close()

    def put_manifest(self, repository, name, content):
        put = urllib.request.Request(
            f"http://{self.address}/v2/{repository}/manifests/{name}", data=content, method="PUT")
        put.add_header("Content-Type", json.loads(content)["mediaType"])
        urllib.request.urlopen(put, timeout=60).close()


class Gate:
    """Passes requests on to a registry, after doing with them what the test says.

    `faults` are (pattern of the path, what to do) pairs, each done once: a status code, "cut" to send half of a body
    and break off, "tamper" to change a byte of it. With `auth` "token" or "basic" it wants to know who asks.
    """

    def __init__(self, registry, auth=None):
        self.faults, self.asked, self.auth, self.token = [], [], auth, None
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                gate.asked.append(f"{self.command} {self.path}")
                if self.path.startswith("/token?"):
                    return self.give_token()
                if not self.may_pass():
                    challenge = 'Basic realm="x"' if gate.auth == "basic" else (
                        f'Bearer realm="http://{gate.address}/token",service="here",scope="repository:x:pull"')
                    return self.answer(401, b"", {"WWW-Authenticate": challenge})
                fault = next((fault for fault in gate.faults if re.search(fault[0], self.path)), None)
                if fault:
                    gate.faults.remove(fault)
                    if isinstance(fault[1], int):
                        return self.answer(fault[1], b"{}", {"Retry-After": "0"})
                status, headers, body = self.fetch()
                if fault and fault[1] == "tamper":
                    body = body[:-1] + bytes([body[-1] ^ 1])
                self.answer(status, body, headers, cut=fault and fault[1] == "cut")

            def may_pass(self):
                said = self.headers.get("Authorization", "")
                return {
                    None: True, "basic": said == basic(), "token": gate.token and said == f"Bearer {gate.token}",
                }[gate.auth]

            def give_token(self):
                if self.headers.get("Authorization") != basic():
                    return self.answer(401, b"{}", {})
                gate.token = base64.urlsafe_b64encode(str(time.time()).encode()).decode()
                self.answer(200, json.dumps({"token": gate.token, "expires_in": 60}).encode(), {})

            def fetch(self):
                request = urllib.request.Request(f"http://{registry.address}{self.path}", method=self.command)
                for name in ("Accept", "Range"):
                    if name in self.headers:
                        request.add_header(name, self.headers[name])
                try:
                    with urllib.request.urlopen(request, timeout=60) as answer:
                        return answer.status, dict(answer.headers), answer.read()
                except urllib.error.HTTPError as error:
                    return error.code, dict(error.headers), error.read()

            def answer(self, status, body, headers, cut=False):
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "date", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body[: len(body) // 2] if cut else body)
                self.close_connection = self.close_connection or cut

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def basic():
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
