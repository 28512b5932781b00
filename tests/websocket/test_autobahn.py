"""The Autobahn WebSocket test suite through the proxy, without microVMs.

kosoku runs the suite's own case files (families 1 to 7, 9, 10, 12 and 13: framing, pings, reserved bits, opcodes,
fragments, UTF-8, closing, limits and performance, compression) against an echo server of the `websockets` library:
once direct, once through the real proxy with TLS and token. The proxy must change no verdict for the worse.
"""

import asyncio
import contextlib
import json
import os
import ssl
import sys

import kosoku
import websockets
from harness.host_proxy import host_proxy

PLAIN = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
# 216 cases of a thousand messages each. The proxy looks into no message, so a smallest, a large and a fragmented
# one of each family tell as much; DORMOUSE_AUTOBAHN=all runs them all.
COMPRESSED = {"12": range(1, 6), "13": range(1, 8)}
WHOLE = os.environ.get("DORMOUSE_AUTOBAHN") == "all"
SAMPLE = [f"{family}.{part}.{case}" for family, parts in COMPRESSED.items() for part in parts for case in (1, 10, 18)]
CHOSEN = PLAIN + (["12.*", "13.*"] if WHOLE else SAMPLE)
# A run of fewer would prove less than it says.
CASES = 517 if WHOLE else 337
AT_ONCE = 4
PATIENCE_S = 3600 if WHOLE else 600
# From the best to the worst. An exchange that is not strict has passed: an echo that was under way when the server
# hung up over a broken frame may come or not.
EXCHANGE = [("OK", "NON-STRICT"), ("INFORMATIONAL",), ("UNIMPLEMENTED",), ("FAILED", "ERROR")]
CLOSING = ["OK", "INFORMATIONAL", "UNCLEAN", "WRONG CODE", "FAILED BY CLIENT", "FAILED"]


def test_no_case_fails_that_a_direct_connection_passes(tmp_path):
    direct, proxied = asyncio.run(asyncio.wait_for(both_runs(tmp_path), PATIENCE_S))
    assert len(direct) == len(proxied) == CASES
    worse = {case: f"{direct[case]} became {proxied[case]}" for case in worse_cases(direct, proxied)}
    assert not worse, json.dumps(worse, indent=2)
    passed = [case for case, verdict in direct.items() if grade(verdict[0]) < grade("UNIMPLEMENTED")]
    assert len(passed) > 0.98 * CASES, "the echo server itself is sound"


def worse_cases(direct, proxied):
    return [case for case, verdict in proxied.items() if is_worse(verdict, direct[case])]


def is_worse(verdict, before):
    (exchange, closing), (exchange_before, closing_before) = verdict, before
    return (grade(exchange) > grade(exchange_before)
            or CLOSING.index(closing) > CLOSING.index(closing_before))


def grade(exchange):
    return next(place for place, verdicts in enumerate(EXCHANGE) if exchange in verdicts)


async def both_runs(folder):
    # The suite compares bytes: no limit of the server's, and no pings of its own.
    server = await websockets.serve(echo, "127.0.0.1", 0, max_size=None, ping_interval=None)
    origin = "{}:{}".format(*server.sockets[0].getsockname())
    with host_proxy(folder, origin) as endpoint:
        door = await asyncio.start_server(lambda *streams: enter(endpoint, *streams), "127.0.0.1", 0)
        proxied = "{}:{}".format(*door.sockets[0].getsockname())
        direct, through = await verdicts(origin), await verdicts(proxied)
        # The cases have limits of real time, which a busy machine exceeds: whatever failed gets it for itself once.
        if failed := worse_cases(direct, through):
            through |= await verdicts(proxied, failed, at_once=1)
        return direct, through


async def echo(connection):
    with contextlib.suppress(websockets.ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def verdicts(address, cases=CHOSEN, at_once=AT_ONCE):
    """The verdict on the exchange and on the closing of each case."""
    try:
        results = await kosoku.run_fuzzingclient(address, cases, None, concurrency=at_once)
    except kosoku.FailureError as failure:
        results = failure.results
    return {result.case_id: (result.behavior.value, result.behavior_close.value) for result in results}


async def enter(endpoint, reader, writer):
    """Carries one plain connection to the endpoint: adds TLS, host and token, and looks at nothing else."""
    with contextlib.closing(writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request, *lines = head.split("\r\n")
            lines = [line for line in lines if not line.lower().startswith("host:")]
            own = [f"Host: {endpoint['host']}", f"X-aws-proxy-auth: {endpoint['token']}"]
            address, port = endpoint["address"].split(":")
            context = ssl.create_default_context(cafile=endpoint["ca"])
            far_reader, far_writer = await asyncio.open_connection(
                address, port, ssl=context, server_hostname=endpoint["host"])
            with contextlib.closing(far_writer):
                far_writer.write("\r\n".join([request, *own, *lines]).encode())
                await either(pump(reader, far_writer), pump(far_reader, writer))
        except (OSError, asyncio.IncompleteReadError) as error:
            print(f"a connection broke: {error!r}", file=sys.stderr)


async def either(*copies):
    """TLS knows no half-closed connection in asyncio, and WebSocket needs none: one end ends both."""
    tasks = [asyncio.ensure_future(copy) for copy in copies]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()


async def pump(reader, writer):
    while piece := await reader.read(1 << 16):
        writer.write(piece)
        await writer.drain()
