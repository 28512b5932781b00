"""A gRPC server without TLS that knows no types: each message is some bytes."""

import asyncio

import h2.config
import h2.connection
import h2.events
import h2.exceptions

PREFIX = 5
OK, INVALID_ARGUMENT = "0", "3"
PAUSE_S = 1


class Call:
    """One call: what it has sent, and the messages in it."""

    def __init__(self, path):
        self.method = path.rpartition("/")[2]
        self.buffer = b""
        self.messages = []

    def take(self, data):
        """The messages that `data` completes."""
        self.buffer += data
        while len(self.buffer) >= PREFIX:
            length = int.from_bytes(self.buffer[1:PREFIX], "big")
            if len(self.buffer) < PREFIX + length:
                return
            message, self.buffer = self.buffer[PREFIX:PREFIX + length], self.buffer[PREFIX + length:]
            self.messages.append(message)
            yield message


class Server:
    """One connection."""

    def __init__(self, writer):
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.writer = writer
        self.calls = {}
        self.tasks = set()

    def handle(self, event):
        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            call = self.calls[event.stream_id] = Call(headers[":path"])
            if call.method == "Fail":
                self.h2.send_headers(event.stream_id, answer_head() + status(INVALID_ARGUMENT), end_stream=True)
            else:
                self.h2.send_headers(event.stream_id, answer_head() + [("saw-te", headers.get("te", ""))])
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            call = self.calls[event.stream_id]
            for message in call.take(event.data):
                if call.method == "Talk":
                    self.say(event.stream_id, message.upper())
        elif isinstance(event, h2.events.StreamEnded):
            self.end(event.stream_id, self.calls[event.stream_id])
        elif isinstance(event, h2.events.StreamReset):
            self.calls.pop(event.stream_id, None)

    def say(self, stream, message):
        self.h2.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message)

    def end(self, stream, call):
        if call.method == "Count":
            task = asyncio.create_task(self.count(stream, int(call.messages[0])))
            self.tasks.add(task)
            return
        if call.method in ("Unary", "Join"):
            self.say(stream, b",".join(call.messages))
        if call.method != "Fail":
            self.h2.send_headers(stream, status(OK), end_stream=True)

    async def count(self, stream, count):
        for number in range(count):
            self.say(stream, b"%d" % number)
            self.flush()
            await asyncio.sleep(PAUSE_S)
        self.h2.send_headers(stream, status(OK), end_stream=True)
        self.flush()

    def flush(self):
        self.writer.write(self.h2.data_to_send())


def answer_head():
    return [(":status", "200"), ("content-type", "application/grpc")]


def status(code):
    return [("grpc-status", code)]


async def serve(reader, writer):
    server = Server(writer)
    try:
        server.flush()
        while data := await reader.read(1 << 16):
            for event in server.h2.receive_data(data):
                server.handle(event)
            server.flush()
    except (ConnectionError, h2.exceptions.ProtocolError):
        pass
    finally:
        writer.close()
