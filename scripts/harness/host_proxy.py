"""The real proxy in front of a server on this host instead of a microVM: crates/ingress/examples/bench_proxy.rs."""

import contextlib
import json
import subprocess

from .daemon import PROJECT, TARGET


def build(profile="release"):
    """Builds it, which takes no time where it is built, and says where it is."""
    # As the tests are built, and so with the dependencies that they have built.
    command = ["cargo", "build", "--quiet", "--locked", "--profile", profile, "--workspace", "--exclude", "dormouse-e2e",
               "--example", "bench_proxy"]
    subprocess.run(command, cwd=PROJECT, check=True)
    return TARGET / profile / "examples/bench_proxy"


@contextlib.contextmanager
def host_proxy(folder, origin):
    """Runs it in front of `origin`; gives its address, a host name, a token for it, and the file of its CA."""
    binary = build()
    with subprocess.Popen([binary, "proxy", folder, origin], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline()) | {"ca": folder / "ca.pem"}
        finally:
            process.kill()
