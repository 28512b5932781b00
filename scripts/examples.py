#!/usr/bin/env python3
"""Builds every example with the command line, launches it, and checks what it answers.

usage: examples.py [NAME ...]

Images stay in the data directory, .cache/examples, so a second run finds their layers. DORMOUSE_TEST_ACCEL
(default auto) says how the guests are executed; in software emulation all of them take about an hour.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from harness.daemon import BINARY, CACHE, Daemon
from harness.endpoint import Endpoint

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BUILD_TIMEOUT_S = 3600
# In software emulation an app may be snapshotted before it listens; it goes on where it was.
LISTEN_TIMEOUT_S = 180
SUM = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
# Requests and what their answers must hold, in order; a request without a body is a GET.
CHECKS = {
    "hello": [("/", None, "1")],
    "nginx-static": [("/", None, "Served by nginx")],
    "cron-worker": [("/", None, '"runs": ')],
    "flask": [("/?name=you", None, "Hello, you!")],
    "fastapi": [("/sum", '{"numbers": [1, 2.5]}', '"sum":3.5')],
    "express": [("/", None, '{"visits":1}'), ("/", None, '{"visits":2}')],
    "code-sandbox": [
        ("/", "rg --files-with-matches answer", "answer.py"),
        ("/", "echo x > y && git add y && git commit -qm y && git log --oneline | wc -l", '"output": "2\\n"'),
    ],
    "postgres": [
        ("/", "SELECT name FROM city ORDER BY population DESC LIMIT 1", '[["Turin"]]'),
        ("/", "INSERT INTO city VALUES ('Nantes', 326000) RETURNING population", "326000"),
    ],
    "jupyter-kernel": [("/", "x = 6 * 7", '"error": null'), ("/", "x", '"result": "42"')],
    "go-service": [("/", "test", SUM)],
    "java-service": [("/", None, "visit 1 on Java 17"), ("/", None, "visit 2")],
}


def main(names):
    unknown = set(names) - set(CHECKS)
    if unknown:
        sys.exit(f"examples: there is no {', '.join(sorted(unknown))}")
    log = CACHE / "examples.log"
    log.unlink(missing_ok=True)
    options = ["--accel", os.environ.get("DORMOUSE_TEST_ACCEL", "auto")]
    if config := os.environ.get("DORMOUSE_EXAMPLES_CONFIG"):
        options += ["--config", config]
    daemon = Daemon(CACHE / "examples", log, options=options).start()
    failed = []
    try:
        environment = daemon.environment()
        for name in names or CHECKS:
            began = time.monotonic()
            try:
                built_s = check(name, environment)
                print(f"{name:16} built in {built_s:6.1f} s, answers after {time.monotonic() - began:6.1f} s", flush=True)
            except (subprocess.SubprocessError, OSError, AssertionError) as error:
                failed.append(name)
                print(f"{name:16} FAILED: {error}", flush=True)
    finally:
        daemon.stop()
        daemon.sweep()
    if failed:
        sys.exit(f"examples: {', '.join(failed)} failed; the daemon's log is {log}")


def check(name, environment):
    """Returns the seconds that the build took."""
    began = time.monotonic()
    build = dormouse(environment, "image", "build", str(EXAMPLES / name), timeout=BUILD_TIMEOUT_S)
    assert build.returncode == 0, f"{build.stdout[-3000:]}{build.stderr}"
    built_s = time.monotonic() - began
    launched = dormouse(environment, "run", name)
    assert launched.returncode == 0, launched.stderr
    vm_id = launched.stdout.split()[0]
    try:
        address = re.search(r"https://([^/]+)/", launched.stdout)[1]
        token = re.search(r"X-aws-proxy-auth: ([^']+)'", launched.stdout)[1]
        endpoint = Endpoint(address, token, environment["CURL_CA_BUNDLE"])
        for path, body, expected in CHECKS[name]:
            answer = ask(endpoint, path, body)
            text = answer.body.decode(errors="replace")
            assert answer.status == 200 and expected in text, f"{path} answers {answer.status} {json.dumps(text)}"
    finally:
        dormouse(environment, "terminate", vm_id)
    return built_s


def ask(endpoint, path, body):
    """The app's answer, once it listens."""
    deadline = time.monotonic() + LISTEN_TIMEOUT_S
    while True:
        answer = endpoint.get(path) if body is None else endpoint.post(path, body.encode())
        if answer.status != 502 or time.monotonic() > deadline:
            return answer
        time.sleep(1)


def dormouse(environment, *arguments, timeout=300):
    return subprocess.run(
        [BINARY, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)


if __name__ == "__main__":
    main(sys.argv[1:])
