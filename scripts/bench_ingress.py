"""Measures the endpoint's proxy against nginx and HAProxy: the part `ingress` of `make bench`.

All three terminate TLS 1.3 in front of one and the same server on this host, so that no emulated guest hides what
a proxy costs; Dormouse checks the token of each request besides. Each proxy has one core, the server and the
client share another. The candidates take turns, and a ratio is the median of the ratios within one turn: a slow
moment of the host hits all of them.

The yardstick is nginx as one sets it up for speed: connections to the server are kept, bodies are not spooled.
"""

import contextlib
import json
import os
import re
import resource
import socket
import ssl
import statistics
import subprocess
import time
from pathlib import Path

from harness import host_proxy
from harness.daemon import CACHE, PROJECT, free_port

HOME = CACHE / "bench-ingress"
ROUNDS = 4
SECONDS = 2
CONNECTIONS = 64
# Of HTTP/2: so many requests at once on each of so many connections.
STREAMS, H2_CONNECTIONS = 16, 4
BODY_BYTES = 1 << 30
IDLE_CONNECTIONS = 2000
START_TIMEOUT_S = 10
NGINX = """
daemon off; master_process off; worker_processes 1; error_log stderr crit; pid {home}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off; default_type text/plain; keepalive_requests 100000000;
    client_body_temp_path {home}/spool; proxy_temp_path {home}/spool; fastcgi_temp_path {home}/spool;
    uwsgi_temp_path {home}/spool; scgi_temp_path {home}/spool;
    client_max_body_size 0; proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_buffers 16 32k;
    ssl_certificate {home}/pair.pem; ssl_certificate_key {home}/pair.pem; ssl_protocols TLSv1.3;
    upstream origin {{ server {origin}; keepalive 128; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} ssl http2 backlog=4096;
        location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
    server {{
        listen 127.0.0.1:{plain_port} ssl;
        location / {{ proxy_pass http://{origin}; }}
    }}
}}
"""
HAPROXY = """
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend endpoint
    bind 127.0.0.1:{port} ssl crt {home}/pair.pem alpn h2,http/1.1 ssl-min-ver TLSv1.3 backlog 4096
    default_backend origin
backend origin
    server origin {origin}
"""
WRK_REPORT = """
done = function(summary, latency, requests)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format('{"requests": %d, "us": %d, "p50_us": %d, "p99_us": %d, "failed": %d}',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), failed))
end
"""


class Candidate:
    """A proxy that runs."""

    def __init__(self, process, address, host, token=None):
        self.process = process
        self.address = address
        self.host = host
        self.token = {"X-aws-proxy-auth": token} if token else {}

    def cpu_s(self):
        """Processor seconds that it has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_kib(self):
        """Its own memory, in KiB: what is mapped from files is not counted."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def ingress():
    """All figures, by name."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("the proxy and its load need a core each")
    subprocess.run([PROJECT / "scripts/bench-packages.sh"], check=True)
    # As it is installed.
    binary = host_proxy.build("dist")
    raise_limit()
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "report.lua").write_text(WRK_REPORT)
    with (HOME / "body").open("wb") as body:
        body.truncate(BODY_BYTES)
    with contextlib.ExitStack() as stack:
        plain_port = free_port()
        proxies = candidates(stack, binary, plain_port, load_core=cores[0], proxy_core=cores[1])
        return figures(proxies, plain_port, Load(cores[0]))


def figures(proxies, plain_port, load):
    for proxy in proxies.values():
        load.check(proxy)
    say("memory of idle connections")
    idle = {name: idle_connection_kib(proxy) for name, proxy in proxies.items()}
    as_it_comes = Candidate(proxies["nginx"].process, f"127.0.0.1:{plain_port}", proxies["nginx"].host)
    requests = rounds("requests over kept connections", proxies | {"nginx as it comes": as_it_comes}, load.requests)
    h2 = rounds("requests over HTTP/2", proxies, load.h2_requests)
    handshakes = rounds("a connection for each request", proxies, load.handshakes)
    download = rounds(f"downloads of {BODY_BYTES >> 20} MiB", proxies, load.download)
    upload = rounds(f"uploads of {BODY_BYTES >> 20} MiB", proxies, load.upload)
    throughput = {name: ratio(turns, "mib_s") for name, turns in (("download", download), ("upload", upload))}
    return {
        "rps_ratio_nginx": ratio(requests, "rps"),
        "rps_ratio_nginx_as_it_comes": ratio(requests, "rps", "nginx as it comes"),
        "p99_ratio_nginx": ratio(requests, "p99_us"),
        "throughput_ratio_nginx": min(throughput.values()),
        "idle_connection_kib": idle["dormouse"],
        "h2_rps_ratio_nginx": ratio(h2, "rps"),
        "handshake_ratio_nginx": ratio(handshakes, "rps"),
        "download_ratio_nginx": throughput["download"],
        "upload_ratio_nginx": throughput["upload"],
        "keep_alive": medians(requests), "h2": medians(h2), "handshakes": medians(handshakes),
        "download": medians(download), "upload": medians(upload), "idle_kib": idle,
        "rounds": ROUNDS, "connections": CONNECTIONS,
    }


def rounds(title, proxies, work):
    """What `work` says of each proxy, turn after turn. What it says of the first turn does not count."""
    say(title)
    turns = [{name: work(proxy) for name, proxy in proxies.items()} for _ in range(ROUNDS + 1)]
    return turns[1:]


def ratio(turns, figure, yardstick="nginx"):
    """How many times the yardstick's figure Dormouse's is."""
    return round(statistics.median(turn["dormouse"][figure] / turn[yardstick][figure] for turn in turns), 3)


def medians(turns):
    return {
        name: {figure: round(statistics.median(turn[name][figure] for turn in turns), 1) for figure in turns[0][name]}
        for name in turns[0]
    }


class Load:
    """Clients on one core."""

    def __init__(self, core):
        self.core = core

    def run(self, *command):
        command = ["taskset", "--cpu-list", str(self.core), *map(str, command)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    def check(self, proxy):
        """Fails unless the proxy answers with what the server said, in both protocols."""
        for version in ("--http1.1", "--http2"):
            answer = self.curl(proxy, version, "--write-out", " %{http_code} %{http_version}")
            if not answer.startswith("ok 200 "):
                raise RuntimeError(f"{proxy.host} answered {answer}")

    def requests(self, proxy):
        return self.wrk(proxy)

    def handshakes(self, proxy):
        return self.wrk(proxy, "--header", "Connection: close")

    def wrk(self, proxy, *more):
        before = proxy.cpu_s()
        output = self.run("wrk", "--threads", 1, "--connections", CONNECTIONS, "--duration", f"{SECONDS}s", "--script",
                          HOME / "report.lua",
                          *options({"Host": proxy.host} | proxy.token), *more,
                          f"https://{proxy.address}/")
        report = json.loads(output[output.index("{"):])
        if report["failed"] or not report["requests"]:
            raise RuntimeError(f"{report['failed']} requests to {proxy.address} failed, {report['requests']} did not")
        return {
            "rps": report["requests"] / report["us"] * 1e6, "p50_us": report["p50_us"], "p99_us": report["p99_us"],
            "cpu_us": (proxy.cpu_s() - before) / report["requests"] * 1e6,
        }

    def h2_requests(self, proxy):
        before = proxy.cpu_s()
        output = self.run("h2load", "--duration", SECONDS, "--clients", H2_CONNECTIONS, "--max-concurrent-streams",
                          STREAMS, "--connect-to", proxy.address, *options(proxy.token), f"https://{proxy.host}/")
        done, failed = re.search(r"(\d+) done, \d+ succeeded, (\d+) failed", output).groups()
        if int(failed) or not int(done):
            raise RuntimeError(output)
        return {"rps": int(done) / SECONDS, "cpu_us": (proxy.cpu_s() - before) / int(done) * 1e6}

    def download(self, proxy):
        return self.transfer(proxy, "speed_download", path=f"/bytes/{BODY_BYTES}")

    def upload(self, proxy):
        return self.transfer(proxy, "speed_upload", "--upload-file", HOME / "body")

    def transfer(self, proxy, figure, *more, path="/"):
        before = proxy.cpu_s()
        answer = self.curl(proxy, "--http1.1", "--output", "/dev/null", "--write-out",
                           f"%{{http_code}} %{{size_upload}} %{{size_download}} %{{{figure}}}", *more, path=path)
        status, sent, received, speed = answer.split()
        if status != "200" or max(int(sent), int(received)) != BODY_BYTES:
            raise RuntimeError(f"{proxy.host}: {answer}")
        return {"mib_s": float(speed) / (1 << 20), "cpu_ms_gib": (proxy.cpu_s() - before) * 1000}

    def curl(self, proxy, *more, path="/"):
        port = proxy.address.rpartition(":")[2]
        return self.run("curl", "--silent", "--show-error", "--insecure", "--noproxy", "*", "--resolve",
                        f"{proxy.host}:{port}:127.0.0.1", *options(proxy.token), *more,
                        f"https://{proxy.host}:{port}{path}")


def options(headers):
    """These headers as wrk, h2load and curl take them."""
    return [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]


def idle_connection_kib(proxy):
    """Memory that a connection takes which has had an answer and is silent since."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = proxy.address.split(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in ({"Host": proxy.host} | proxy.token).items())
    request = f"GET / HTTP/1.1\r\n{head}\r\n".encode()
    with contextlib.ExitStack() as stack:
        def connect():
            tcp = socket.create_connection((host, int(port)))
            connection = stack.enter_context(context.wrap_socket(tcp, server_hostname=proxy.host))
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"ok"):
                answer += connection.recv(4096)
        connect()
        before = proxy.memory_kib()
        for _ in range(IDLE_CONNECTIONS):
            connect()
        return round((proxy.memory_kib() - before) / IDLE_CONNECTIONS, 1)


def candidates(stack, binary, plain_port, load_core, proxy_core):
    """The proxies, each in front of one and the same server; on `plain_port` nginx does so with its own defaults."""
    origin = start(stack, load_core, binary, "origin").stdout.readline().strip()
    dormouse = start(stack, proxy_core, binary, "proxy", HOME, origin)
    at = json.loads(dormouse.stdout.readline())
    proxies = {"dormouse": Candidate(dormouse, at["address"], at["host"], at["token"])}
    make_certificate(at["host"])
    for name, template, command in (("nginx", NGINX, ["nginx", "-c"]), ("haproxy", HAPROXY, ["haproxy", "-q", "-db", "-f"])):
        port = free_port()
        config = HOME / f"{name}.conf"
        config.write_text(template.format(home=HOME, port=port, plain_port=plain_port, origin=origin))
        process = start(stack, proxy_core, *command, config)
        wait_for(process, port)
        proxies[name] = Candidate(process, f"127.0.0.1:{port}", at["host"])
    return proxies


def start(stack, core, *command):
    """Starts a process on one core; it ends with the stack."""
    # taskset becomes the command, so the process id is the command's.
    command = ["taskset", "--cpu-list", str(core), *map(str, command)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def wait_for(process, port):
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args} does not listen")


def make_certificate(host):
    """A certificate of the kind that Dormouse makes for itself, and its key, in one file."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
               "-subj", f"/CN={host[-64:]}", "-addext", f"subjectAltName=DNS:{host}",
               "-keyout", HOME / "key.pem", "-out", HOME / "certificate.pem"]
    subprocess.run(command, check=True, capture_output=True)
    (HOME / "pair.pem").write_text((HOME / "certificate.pem").read_text() + (HOME / "key.pem").read_text())


def raise_limit():
    """Lets this process and the proxies have all the connections that the idle ones need."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def show(result):
    """Prints the figures as a table."""
    print(f"\n{'the proxy':32}" + "".join(f"{name:>12}" for name in result["idle_kib"]))
    rows = [
        ("requests", "keep_alive", "rps", "/s"), ("  median", "keep_alive", "p50_us", "µs"),
        ("  99th percentile", "keep_alive", "p99_us", "µs"), ("  processor", "keep_alive", "cpu_us", "µs each"),
        ("requests over HTTP/2", "h2", "rps", "/s"), ("  processor", "h2", "cpu_us", "µs each"),
        ("connections", "handshakes", "rps", "/s"), ("download", "download", "mib_s", "MiB/s"),
        ("  processor", "download", "cpu_ms_gib", "ms per GiB"), ("upload", "upload", "mib_s", "MiB/s"),
        ("  processor", "upload", "cpu_ms_gib", "ms per GiB"),
    ]
    for title, part, figure, unit in rows:
        print(f"{title:32}" + "".join(f"{result[part][name][figure]:12.1f}" for name in result["idle_kib"]) + f"  {unit}")
    print(f"{'idle connection':32}" + "".join(f"{kib:12.1f}" for kib in result["idle_kib"].values()) + "  KiB")
    print(f"Against nginx: requests {result['rps_ratio_nginx']} ({result['rps_ratio_nginx_as_it_comes']} against nginx as it "
          f"comes), 99th percentile {result['p99_ratio_nginx']}, throughput {result['throughput_ratio_nginx']}.")


def say(text):
    print(f"bench: {text}", flush=True)


if __name__ == "__main__":
    measured = ingress()
    print(json.dumps(measured, indent=2))
    show(measured)
