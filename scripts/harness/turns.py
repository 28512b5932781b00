"""TLS for a connection that one thread reads and another writes, as in `websockets.sync`.

OpenSSL's connections are not made for that, and Python 3.11 lets it happen: about one handshake of a WebSocket in 200
ended as if the server had gone, on a busy machine, with a server of Python's as well.
"""

import select
import socket
import ssl
import threading

from harness.endpoint import tls_context


class Turns(ssl.SSLSocket):
    """One thread at a time uses the connection, and none keeps it while it waits."""

    def recv(self, size=1024, flags=0):
        return self._in_turn(super().recv, size, flags)

    def send(self, data, flags=0):
        return self._in_turn(super().send, data, flags)

    def _in_turn(self, operate, *arguments):
        while True:
            with self.turn:
                patience = self.gettimeout()
                self.setblocking(False)
                try:
                    return operate(*arguments)
                except ssl.SSLWantReadError:
                    wanted = [self], []
                except ssl.SSLWantWriteError:
                    wanted = [], [self]
                finally:
                    self.settimeout(patience)
            if not any(select.select(*wanted, [], patience)):
                raise TimeoutError


def tls_socket(address, ca_file, alpn="http/1.1"):
    """TLS to an endpoint, whose name means loopback."""
    host, _, port = address.partition(":")
    context = tls_context(ca_file, alpn)
    context.sslsocket_class = Turns
    plain = socket.create_connection(("127.0.0.1", int(port or 443)), timeout=60)
    tls = context.wrap_socket(plain, server_hostname=host)
    tls.turn = threading.Lock()
    return tls
