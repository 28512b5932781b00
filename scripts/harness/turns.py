"""TLS for a connection that one thread reads and another writes, as in `websockets.sync`.

OpenSSL's connections are not made for that, and Python before 3.13 does nothing about it: about one handshake of a
WebSocket in 200 ended as if the server had gone, on a busy machine, whatever the server was.
"""

import select
import socket
import ssl
import threading


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


def tls_socket(address, ca_file, alpn="http/1.1", timeout=60):
    """TLS to an endpoint, whose name means loopback."""
    host, _, port = address.partition(":")
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols([alpn])
    context.sslsocket_class = Turns
    plain = socket.create_connection(("127.0.0.1", int(port or 443)), timeout)
    tls = context.wrap_socket(plain, server_hostname=host)
    tls.turn = threading.Lock()
    return tls
