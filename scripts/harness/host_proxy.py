"""The real proxy in front of a server on this host instead of a microVM: crates/ingress/examples/bench_proxy.rs."""

import contextlib
import json
import subprocess

from .daemon import PROJECT, TARGET

BINARY = TARGET / "release/examples/bench_proxy"


def build():
    """Builds it, which takes no time where it is built."""
    # As the tests are built, and so with the dependencies that they have built.
    command = ["cargo", "build", "--quiet", "--locked", "--release", "--workspace", "--exclude", "dormouse-e2e",
               "--example", "bench_proxy"]
    subprocess.run(command, cwd=PROJECT, check=True)


@contextlib.contextmanager
def host_proxy(folder, origin):
    """Runs it in front of `origin`; gives its address, a host name, a token for it, and the file of its CA."""
    build()
    with subprocess.Popen([BINARY, "proxy", folder, origin], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline()) | {"ca": folder / "ca.pem"}
        finally:
            process.kill()
