"""Takes its agent's place, as code with all capabilities can, and answers the host as a request says.

POST /usurp?malice=NAME: the agent is stopped, and what listens for the host is this program's from then on.
"""

import ctypes
import itertools
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

AGENT = 1
AGENT_PORT = 61313
SYS_PIDFD_GETFD = 438
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
OK = b"HTTP/1.1 200 OK\r\n"

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def checked(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def listener():
    """The agent's own socket, taken out of its hands."""
    agent = os.pidfd_open(AGENT)
    for number in map(int, os.listdir(f"/proc/{AGENT}/fd")):
        if not os.readlink(f"/proc/{AGENT}/fd/{number}").startswith("socket:"):
            continue
        taken = socket.socket(fileno=checked(libc.syscall(SYS_PIDFD_GETFD, agent, number, 0), "pidfd_getfd"))
        listens = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens and taken.family == socket.AF_INET and taken.getsockname()[1] == AGENT_PORT:
            return taken
    raise LookupError("the agent listens nowhere")


def stop_agent():
    for thread in map(int, os.listdir(f"/proc/{AGENT}/task")):
        checked(libc.ptrace(PTRACE_SEIZE, thread, None, None), "seize")
        checked(libc.ptrace(PTRACE_INTERRUPT, thread, None, None), "interrupt")


def usurp(malice):
    time.sleep(0.5)
    taken = listener()
    taken.setblocking(True)
    stop_agent()
    # The agent stays stopped as long as the thread that did it lives.
    while True:
        connection, _ = taken.accept()
        threading.Thread(target=answer, args=(malice, connection), daemon=True).start()


def answer(malice, connection):
    with connection:
        try:
            connection.recv(65536)
            MALICE[malice](connection)
        except OSError:
            pass


def flood(connection, head, piece):
    connection.sendall(head)
    for _ in itertools.count():
        connection.sendall(piece)


def tunnel(connection, fields):
    connection.sendall(OK + b"\r\n")
    connection.recv(65536)
    flood(connection, OK + fields + b"\r\n", b"x" * 65536)


MALICE = {
    "silence": lambda connection: time.sleep(1e6),
    # An end of a line may precede an answer: what begins with one is another kind of noise.
    "noise": lambda connection: flood(connection, b"\xff", os.urandom(65536)),
    "endless head": lambda connection: flood(connection, OK, b"a: b\r\n" * 1000),
    "endless body": lambda connection: flood(connection, OK + b"\r\n", b"x" * 65536),
    "endless tunnel": lambda connection: tunnel(connection, b"Content-Length: 99999999999\r\n"),
    "yes": lambda connection: connection.sendall(OK + b"Content-Length: 2\r\n\r\n{}"),
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        malice = dict(parse_qsl(urlsplit(self.path).query))["malice"]
        self.send_response(204)
        self.end_headers()
        threading.Thread(target=usurp, args=(malice,), daemon=True).start()


ThreadingHTTPServer(("", 8080), Handler).serve_forever()
