"""HTTPS to a MicroVM's endpoint. `*.localhost` means loopback, which not every resolver knows."""

import http.client
import json
import socket
import ssl
from dataclasses import dataclass

TOKEN_HEADER = "X-aws-proxy-auth"


@dataclass
class Answer:
    """A whole answer."""

    status: int
    headers: dict
    body: bytes

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ValueError(f"status {self.status}, no JSON: {self.body[:200]!r}") from error


class Connection(http.client.HTTPSConnection):
    """A TLS connection to loopback under the endpoint's name."""

    def __init__(self, endpoint, ca_file, timeout=60):
        host, _, port = endpoint.partition(":")
        super().__init__(host, int(port or 443), context=tls_context(ca_file), timeout=timeout)

    def connect(self):
        plain = socket.create_connection(("127.0.0.1", self.port), self.timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._context.wrap_socket(plain, server_hostname=self.host)


def tls_context(ca_file, alpn="http/1.1"):
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols([alpn])
    return context


@dataclass
class Endpoint:
    """One MicroVM's endpoint with a token for it, each request on a connection of its own."""

    address: str
    token: str
    ca_file: str
    timeout: float = 60

    def request(self, method, path, body=None, headers=None):
        connection = Connection(self.address, self.ca_file, self.timeout)
        try:
            connection.request(method, path, body, self.headers(headers))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.request("GET", path, headers=headers)

    def post(self, path, body=b"", **headers):
        return self.request("POST", path, body, headers)

    def headers(self, more=None):
        token = {TOKEN_HEADER: self.token} if self.token is not None else {}
        return token | (more or {})
