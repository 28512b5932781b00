"""Speaks to the end-to-end tests in each protocol that an endpoint carries, each on a port of its own."""

import asyncio
import json
import ssl

import grpc_echo
from websockets.asyncio.server import serve as serve_websocket

WEBSOCKET_PORT = 8080
HTTP_PORT = 8081
GRPC_PORT = 8082
TLS_PORT = 8443
EVENTS = 3
EVENT_PAUSE_S = 1


async def chat(connection):
    """Tells what it saw of the handshake, then sends back what it gets."""
    await connection.send(json.dumps(list(connection.request.headers.raw_items())))
    async for message in connection:
        await connection.send(message)


def prefer_chat(_, offered):
    return "chat" if "chat" in offered else None


class Request:
    """One HTTP/1.1 request."""

    def __init__(self, head):
        line, *fields = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.method, self.path, _ = line.split(" ")
        self.headers = parse(fields)
        self.trailers = {}
        self.body = b""

    async def read_body(self, reader):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            self.body = await reader.readexactly(int(self.headers.get("content-length", 0)))
            return
        while size := int(await reader.readline(), 16):
            self.body += await reader.readexactly(size)
            await reader.readexactly(2)
        fields = []
        while (line := await reader.readline()) != b"\r\n":
            fields.append(line.decode("latin-1").rstrip("\r\n"))
        self.trailers = parse(fields)


def parse(fields):
    pairs = (field.split(":", 1) for field in fields)
    return {name.lower(): value.strip() for name, value in pairs}


async def http(reader, writer):
    """HTTP/1.1 by hand, as servers' libraries have no trailers."""
    try:
        while True:
            request = Request(await reader.readuntil(b"\r\n\r\n"))
            if request.path == "/events":
                return await events(writer)
            await request.read_body(reader)
            await echo(request, writer)
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        pass
    finally:
        writer.close()


async def echo(request, writer):
    body = json.dumps({
        "method": request.method, "path": request.path, "headers": request.headers, "trailers": request.trailers,
        "bytes": len(request.body), "peer": writer.get_extra_info("peername")[0],
        "tls": writer.get_extra_info("ssl_object") is not None,
    }).encode()
    writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-After\r\n\r\n")
    if request.method != "HEAD":
        writer.write(b"%x\r\n%s\r\n0\r\nX-After: %d\r\n\r\n" % (len(body), body, len(body)))
    await writer.drain()


async def events(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    for number in range(EVENTS):
        writer.write(b"id: %d\ndata: event\n\n" % number)
        await writer.drain()
        await asyncio.sleep(EVENT_PAUSE_S)


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("identity.pem")
    await asyncio.start_server(http, "127.0.0.1", HTTP_PORT)
    await asyncio.start_server(http, "127.0.0.1", TLS_PORT, ssl=context)
    await asyncio.start_server(grpc_echo.serve, "127.0.0.1", GRPC_PORT)
    async with serve_websocket(chat, "127.0.0.1", WEBSOCKET_PORT, select_subprotocol=prefer_chat) as server:
        print("protocols: listening", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
