"""Certificates and names: TLS, DNS, CONNECT, plain HTTP, and AWS's own clients with no endpoint URL at all."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import time
import uuid
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from conftest import ACCEL, CACHE, unexpected_lines
from harness.daemon import BINARY, Daemon, free_port, plain_environment
from harness.endpoint import TOKEN_HEADER
from harness.polling import until

DOMAIN = "vm.dormouse.test"
REGION = "us-east-1"
STRANGER = f"{uuid.uuid4()}.{DOMAIN}"
MISSING = b"Request missing authentication"
AWS = Path(sys.executable).with_name("aws")


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A CA of the test's own."""

    def __init__(self, folder):
        self.folder = folder
        self.file, self.key = folder / "ca.pem", folder / "ca.key"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2,
                "-subj", "/CN=test", "-keyout", self.key, "-out", self.file)

    def issue(self, name, certificate, key):
        """Writes a new pair for a name."""
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2,
                "-subj", "/CN=endpoints", "-addext", f"subjectAltName={name}", "-addext",
                "basicConstraints=critical,CA:FALSE", "-CA", self.file, "-CAkey", self.key, "-keyout", key,
                "-out", certificate)


def context_for(ca_file, version=None):
    context = ssl.create_default_context(cafile=ca_file)
    if version:
        # What the client offers must be the server's to refuse.
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    return context


@contextlib.contextmanager
def handshake(port, name, context):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
        with context.wrap_socket(plain, server_hostname=name) as tls:
            yield tls


def serial(port, name, context):
    with handshake(port, name, context) as tls:
        return tls.getpeercert()["serialNumber"]


def curl(*arguments, env=None):
    done = subprocess.run(["curl", "--silent", "--show-error", "--max-time", "60", *arguments], capture_output=True,
                          timeout=90, env=env or plain_environment())
    return done.stdout, done.stderr


class Named(Daemon):
    """A daemon with names of its own, and no MicroVMs."""

    def __init__(self, folder, name, config):
        path = CACHE / f"e2e-{name}.toml"
        path.write_text(f'[endpoint]\ndomain = "{DOMAIN}"\n{config}\n[network]\nwarm_slots = 0\n')
        log = CACHE / f"e2e-{name}.log"
        log.unlink(missing_ok=True)
        super().__init__(folder / name, log, options=["--config", str(path), "--accel", ACCEL, "--log-format", "json"])


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def given(home, authority):
    """A daemon with a given certificate and every listener there is."""
    certificate, key = authority.folder / "tls.pem", authority.folder / "tls.key"
    authority.issue(f"DNS:*.{DOMAIN}", certificate, key)
    ports = {name: free_port() for name in ("plain", "dns", "connect")}
    daemon = Named(home, "names", f"""plain_addr = "127.0.0.1:{ports['plain']}"
[tls]
certificate = "{certificate}"
key = "{key}"
[dns]
addr = "127.0.0.1:{ports['dns']}"
addresses = ["192.0.2.7", "2001:db8::7"]
[connect]
addr = "127.0.0.1:{ports['connect']}"
""")
    daemon.ports, daemon.certificate, daemon.key = ports, certificate, key
    daemon.expected = 0
    daemon.start()
    yield daemon
    assert daemon.stop() == 0
    unexpected = unexpected_lines(daemon.log)
    assert len(unexpected) == daemon.expected, "\n".join(unexpected)


def through_proxy(daemon, **more):
    """The environment that `dormouse env --proxy` makes."""
    script = daemon.run("env", "--proxy") + "\nenv -0"
    done = subprocess.run(["sh", "-ec", script], env=plain_environment(), capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line) | more


def test_tls_1_2_and_1_3_are_spoken_and_1_1_is_not(given, authority):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with handshake(given.ingress_port, STRANGER, context_for(authority.file, version)) as tls:
            assert tls.version() == version.name.replace("_", ".")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        with handshake(given.ingress_port, STRANGER, context_for(authority.file, ssl.TLSVersion.TLSv1_1)):
            pass


def test_a_new_certificate_is_served_and_old_connections_live_on(given, authority):
    context = context_for(authority.file)
    first = serial(given.ingress_port, STRANGER, context)
    with handshake(given.ingress_port, STRANGER, context) as old:
        authority.issue(f"DNS:*.{DOMAIN}", given.certificate, given.key)
        until(lambda: serial(given.ingress_port, STRANGER, context) != first, "the new certificate is served")
        second = serial(given.ingress_port, STRANGER, context)
        old.sendall(f"GET / HTTP/1.1\r\nHost: {STRANGER}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := old.recv(1 << 16):
            answer += piece
        assert answer.endswith(MISSING)

    given.key.write_text("no key at all")
    given.expected = 1
    until(lambda: unexpected_lines(given.log), "a broken key is told of")
    time.sleep(3)
    told = unexpected_lines(given.log)
    assert len(told) == 1 and str(given.key) in told[0], told
    assert serial(given.ingress_port, STRANGER, context) == second
    # A name that the given certificate does not cover has the internal CA's.
    own = context_for(given.run("env").split("DORMOUSE_CA_FILE=")[1].split()[0])
    with handshake(given.ingress_port, f"{uuid.uuid4()}.lambda-microvm.{REGION}.on.aws", own):
        pass


def test_a_daemon_does_not_start_with_a_certificate_for_another_name(home, authority):
    certificate, key = authority.folder / "other.pem", authority.folder / "other.key"
    authority.issue("DNS:*.other.test", certificate, key)
    daemon = Named(home, "unnamed", f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n')
    command = [str(BINARY), "serve", "--data-dir", str(daemon.data_dir), "--api-addr", "127.0.0.1:0",
               "--ingress-addr", "127.0.0.1:0", *daemon.options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=plain_environment())
    assert done.returncode == 1
    assert str(certificate) in done.stderr and f"*.{DOMAIN}" in done.stderr and "*.other.test" in done.stderr


def test_the_domain_is_answered_for_by_udp_and_tcp_and_nothing_else_is(given):
    port = given.ports["dns"]
    for ask in (dns.query.udp, dns.query.tcp):
        def answer(name, kind, ask=ask):
            query = dns.message.make_query(name, kind, use_edns=True)
            return ask(query, "127.0.0.1", port=port, timeout=60)

        for name in (DOMAIN, STRANGER):
            found = answer(name, "A")
            assert found.flags & dns.flags.AA
            assert [item.address for item in found.answer[0]] == ["192.0.2.7"]
            assert [item.address for item in answer(name, "AAAA").answer[0]] == ["2001:db8::7"]
        assert answer(DOMAIN, "SOA").answer and answer(DOMAIN, "NS").answer
        assert answer("example.com", "A").rcode() == dns.rcode.REFUSED
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as garbage:
        for length in (0, 1, 11, 12, 600, 4000):
            garbage.sendto(os.urandom(length), ("127.0.0.1", port))
    assert answer(DOMAIN, "A").answer


def test_the_plain_listener_judges_as_the_other_does(given):
    url = f"http://127.0.0.1:{given.ports['plain']}/"
    for version in ("--http1.1", "--http2-prior-knowledge"):
        body, _ = curl(version, "--header", f"Host: {STRANGER}", "--write-out", " %{http_code} %{http_version}", url)
        assert body.startswith(MISSING + b" 403 "), body
    assert body.endswith(b" 2"), body


def test_connect_leads_to_the_daemon_and_nowhere_else(given):
    environment = through_proxy(given)
    endpoint = f"https://{uuid.uuid4()}.lambda-microvm.{REGION}.on.aws/"
    assert curl(endpoint, env=environment)[0] == MISSING
    assert curl("--http1.1", endpoint, env=environment)[0] == MISSING
    for url in ("https://example.com/", "https://127.0.0.1/", f"https://lambda.{REGION}.amazonaws.com:444/",
                "https://lambda.eu-west-1.amazonaws.com/"):
        _, error = curl(url, env=environment)
        assert b"403" in error, (url, error)
    proxy = ("127.0.0.1", given.ports["connect"])
    for request, status, words in (
        ("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443", b"403", b"lambda.us-east-1.amazonaws.com"),
        ("GET http://example.com/ HTTP/1.1\r\nHost: example.com", b"405", b"CONNECT"),
    ):
        with socket.create_connection(proxy, timeout=60) as plain:
            plain.sendall(f"{request}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: plain.recv(1 << 16), b""))
        assert answer.split()[1] == status and words in answer, answer


def test_unchanged_aws_clients_need_the_proxy_and_a_ca_and_no_endpoint(given, tmp_path):
    environment = through_proxy(given)
    assert "AWS_ENDPOINT_URL" not in environment
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20))

    def aws(*arguments):
        done = subprocess.run([AWS, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(aws("lambda-microvms", "list-microvm-images", "--output", "json"))["items"] == []
    assert json.loads(aws("sts", "get-caller-identity", "--output", "json"))["Account"] == "000000000000"
    aws("s3", "mb", "s3://code")
    aws("s3", "cp", source, "s3://code/2025-09-09/microvms")
    aws("s3", "cp", "s3://code/2025-09-09/microvms", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    script = """
import boto3
s3 = boto3.client("s3")
s3.create_bucket(Bucket="with.dots")
s3.put_object(Bucket="with.dots", Key="key", Body=b"by boto3")
assert s3.get_object(Bucket="with.dots", Key="key")["Body"].read() == b"by boto3"
assert s3.get_object(Bucket="code", Key="2025-09-09/microvms")["ContentLength"] == 1 << 20
assert boto3.client("lambda-microvms").list_microvms()["items"] == []
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def acme_server(tmp_path_factory):
    """Pebble, the test server of Let's Encrypt's makers, and the port on which it asks for names."""
    folder = tmp_path_factory.mktemp("pebble")
    authority = Authority(folder)
    authority.issue("IP:127.0.0.1", folder / "pebble.pem", folder / "pebble.key")
    port, management, dns_port = free_port(), free_port(), free_port()
    config = folder / "pebble.json"
    config.write_text(json.dumps({"pebble": {
        "listenAddress": f"127.0.0.1:{port}", "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(folder / "pebble.pem"), "privateKey": str(folder / "pebble.key"),
        "httpPort": free_port(), "tlsPort": free_port(), "certificateValidityPeriod": 30,
    }}))
    environment = plain_environment() | {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "2"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["pebble", "-config", config, "-dnsserver", f"127.0.0.1:{dns_port}"],
                                   env=environment, stdout=log, stderr=log)
    try:
        roots = folder / "roots.pem"

        def answers():
            assert process.poll() is None, (folder / "log").read_text()
            pem, _ = curl("--cacert", authority.file, f"https://127.0.0.1:{management}/roots/0")
            roots.write_bytes(pem)
            return b"BEGIN CERTIFICATE" in pem

        until(answers, "pebble answers", 60)
        yield f"https://127.0.0.1:{port}/dir", authority.file, roots, dns_port
    finally:
        process.kill()
        process.wait()


def test_a_wildcard_comes_from_an_acme_server_and_is_renewed(home, acme_server, tmp_path):
    directory, ca_file, roots, dns_port = acme_server
    hook, told = tmp_path / "hook", tmp_path / "told"
    hook.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    hook.chmod(0o755)
    daemon = Named(home, "acme", f"""[dns]
addr = "127.0.0.1:{dns_port}"
[tls.acme]
directory_url = "{directory}"
contact = ["mailto:admin@dormouse.test"]
hook = "{hook}"
ca_file = "{ca_file}"
""")
    daemon.start()
    try:
        context = context_for(roots)
        seen = []

        def served():
            with contextlib.suppress(ssl.SSLCertVerificationError):
                number = serial(daemon.ingress_port, STRANGER, context)
                if number not in seen:
                    seen.append(number)
            return seen

        until(served, "a certificate of the ACME server is served", 60)
        action, record, value = told.read_text().splitlines()[0].split()
        assert (action, record) == ("present", f"_acme-challenge.{DOMAIN}") and len(value) == 43
        for file in ("account.json", "certificate.pem"):
            assert (daemon.data_dir / "tls/acme" / file).stat().st_mode & 0o777 == 0o600
        until(lambda: len(served()) > 1, "it is renewed", 60)
        presented = [line.split()[1:] for line in told.read_text().splitlines() if line.startswith("present")]
        withdrawn = [line.split()[1:] for line in told.read_text().splitlines() if line.startswith("cleanup")]
        assert withdrawn == presented
        # The next daemon has it at once.
        daemon.stop()
        daemon.start()
        assert serial(daemon.ingress_port, STRANGER, context)
    finally:
        daemon.sweep()
    assert not unexpected_lines(daemon.log), "\n".join(unexpected_lines(daemon.log))


def test_a_microvm_is_reached_by_each_of_its_names(cloud, vm):
    token = f"{TOKEN_HEADER}: {vm.token()}"
    label = vm.address.partition(".")[0]
    environment = through_proxy(cloud.daemon)
    status = ("--output", os.devnull, "--write-out", "%{http_code}", "--header", token)
    assert curl(*status, f"https://{label}.lambda-microvm.{REGION}.on.aws/", env=environment)[0] == b"200"
    host = vm.address.rpartition(":")[0]
    plain = f"http://127.0.0.1:{cloud.daemon.plain_port}/"
    assert curl(*status, "--header", f"Host: {host}", plain)[0] == b"200"

    name = f"{uuid.uuid4()}.example.org"
    port = cloud.daemon.ingress_port
    own = ("--resolve", f"{name}:{port}:127.0.0.1", "--cacert", cloud.ca_file, f"https://{name}:{port}/")
    assert curl(*status, *own)[0] == b"000", "there is no certificate for any name"
    assert cloud.daemon.run("domain", "add", vm.id, name).split() == [name]
    assert curl(*status, *own)[0] == b"200"
    assert curl("--output", os.devnull, "--write-out", "%{http_code}", *own)[0] == b"403"
    assert cloud.daemon.run("domain", "ls", vm.id).split() == [name]
    assert cloud.daemon.run("domain", "rm", vm.id, name) == ""
    assert curl(*status, *own)[0] == b"000"
    with pytest.raises(Exception, match="endpoints"):
        cloud.daemon.run("domain", "add", vm.id, f"x.{host.partition('.')[2]}")
