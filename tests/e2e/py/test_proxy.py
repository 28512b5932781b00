"""Builds behind a company's proxy, which opens TLS with a CA of its own."""

import contextlib
import re
import subprocess
import sys

import pytest
from conftest import ACCEL, CACHE, unexpected_lines
from harness.artifact import zip_files
from harness.cloud import Cloud, ImageFailed
from harness.daemon import Daemon

NETWORK = "dmtest-proxy"
HOST, PROXY = "192.168.214.1", "192.168.214.2"
PORT = 3128
# A name that only the proxy knows.
SITE = "packages.example"
FETCH = f"""python3 -c "import urllib.request as u; print(u.urlopen('https://{SITE}/x').read().decode())" """
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
SERVE = 'CMD ["python3", "-m", "http.server", "8080", "--directory", "/out"]'

PROXY_PROGRAM = f"""
import socketserver, ssl, sys

class Proxy(socketserver.StreamRequestHandler):
    timeout = 30
    def handle(self):
        request = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        if request.split()[:2] != [b"CONNECT", b"{SITE}:443"]:
            self.wfile.write(b"HTTP/1.1 403 Forbidden\\r\\nContent-Length: 0\\r\\n\\r\\n")
            return
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        self.wfile.flush()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1], sys.argv[2])
        try:
            with context.wrap_socket(self.connection, server_side=True) as tls:
                tls.recv(4096)
                tls.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\nConnection: close\\r\\n\\r\\nby proxy!")
        except OSError:
            pass

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

Server(("{PROXY}", {PORT}), Proxy).serve_forever()
"""


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A CA and a certificate of the site that it signed."""
    folder = tmp_path_factory.mktemp("ca")
    ca, ca_key, site, site_key = (folder / name for name in ("ca.pem", "ca.key", "site.pem", "site.key"))
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
           "-days", "2"]
    run(*new, "-subj", "/CN=company", "-keyout", ca_key, "-out", ca)
    run(*new, "-subj", f"/CN={SITE}", "-addext", f"subjectAltName=DNS:{SITE}", "-addext",
        "basicConstraints=critical,CA:FALSE", "-CA", ca, "-CAkey", ca_key, "-keyout", site_key, "-out", site)
    return ca, site, site_key


@pytest.fixture(scope="module")
def proxy(authority):
    """A proxy beside the host."""
    _, site, site_key = authority
    with contextlib.suppress(subprocess.CalledProcessError):
        run("ip", "netns", "delete", NETWORK)
    run("ip", "netns", "add", NETWORK)
    run("ip", "link", "add", NETWORK, "type", "veth", "peer", "name", "eth0", "netns", NETWORK)
    run("ip", "address", "add", f"{HOST}/24", "dev", NETWORK)
    run("ip", "link", "set", NETWORK, "up")
    run("ip", "-n", NETWORK, "address", "add", f"{PROXY}/24", "dev", "eth0")
    run("ip", "-n", NETWORK, "link", "set", "eth0", "up")
    run("ip", "-n", NETWORK, "route", "add", "default", "via", HOST)
    process = subprocess.Popen(["ip", "netns", "exec", NETWORK, sys.executable, "-c", PROXY_PROGRAM, site, site_key])
    try:
        yield f"http://{PROXY}:{PORT}"
    finally:
        process.kill()
        process.wait()
        run("ip", "netns", "delete", NETWORK)


@pytest.fixture(scope="module")
def behind(home, proxy, authority, tmp_path_factory):
    """A daemon that is configured for the proxy."""
    config = tmp_path_factory.mktemp("config") / "dormouse.toml"
    config.write_text(
        f'[build]\nhttps_proxy = "{proxy}"\nno_proxy = "localhost"\nextra_ca_file = "{authority[0]}"\n'
        f'[network]\nallow = ["{PROXY}/32"]\n')
    log = CACHE / "e2e-proxy.log"
    log.unlink(missing_ok=True)
    daemon = Daemon(home / "proxy", log, options=["--accel", ACCEL, "--log-format", "json", "--config", str(config)])
    daemon.start()
    cloud = Cloud(daemon, daemon.environment())
    yield cloud
    cloud.terminate_all()
    daemon.stop()
    assert not daemon.sweep()
    assert not unexpected_lines(log), "\n".join(unexpected_lines(log))


def test_a_step_reaches_the_world_and_leaves_no_trace(behind, authority):
    dockerfile = f"""FROM localhost/debian:12
RUN mkdir /out
RUN {FETCH} > /out/fetched && env > /out/step
RUN update-ca-certificates && {FETCH} >> /out/fetched && grep -c BEGIN {BUNDLE} > /out/while
CMD ["sh", "-c", "env > /out/app; cp {BUNDLE} /out/bundle; find /etc/ssl /usr/local/share | sort > /out/files; \
exec python3 -m http.server 8080 --directory /out"]
"""
    image = behind.build_image(zip_files({"Dockerfile": dockerfile}))
    with behind.launch(image) as vm:
        def get(path):
            return vm.endpoint.get(f"/{path}").body.decode()

        assert get("fetched").split("\n")[:2] == ["by proxy!"] * 2
        assert f"SSL_CERT_FILE={BUNDLE}" in get("step")
        assert f"HTTPS_PROXY=http://{PROXY}" in get("step")
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_CERT"):
            assert name not in get("app")
        assert "proxy" not in get("app").lower()
        # update-ca-certificates ran with the company's CA there; what it made is without it now.
        company = authority[0].read_text().strip()
        assert company not in get("bundle")
        assert get("bundle").count("BEGIN CERTIFICATE") == int(get("while")) - 1
        assert "dormouse" not in get("files")


def test_another_proxy_is_no_reason_to_build_again(behind):
    dockerfile = f"FROM localhost/debian:12\nRUN mkdir /out && {FETCH} > /out/fetched\n{SERVE}\n"
    behind.build_image(zip_files({"Dockerfile": dockerfile}))
    again = behind.build_image(zip_files({"Dockerfile": dockerfile}))
    assert re.search(r"^#\d+ CACHED$", behind.build_log(again), re.M)


def test_the_proxys_certificate_is_judged(behind):
    """Without the CA, the same step fails: it is the CA that lets it through."""
    unset = "unset SSL_CERT_FILE; export SSL_CERT_DIR=/var/empty SSL_CERT_FILE=/dev/null"
    dockerfile = f"FROM localhost/debian:12\nRUN {unset}; {FETCH}\n{SERVE}\n"
    with pytest.raises(ImageFailed) as failed:
        behind.build_image(zip_files({"Dockerfile": dockerfile}))
    assert "CERTIFICATE_VERIFY_FAILED" in failed.value.log
