"""The command line as people use it: build a folder, watch, launch, look at the disk, end."""

import os
import re
import subprocess
import uuid

import pytest
from harness.daemon import BINARY

APP = """FROM localhost/debian:12
WORKDIR /app
COPY . .
RUN ls > /made && mv /made .
CMD ["python3", "-m", "http.server", "8080"]
"""


@pytest.fixture
def dormouse(cloud):
    """Runs a command with the environment that `dormouse env` gives, and nothing of the data directory."""

    def run(*arguments, status=0):
        done = subprocess.run([BINARY, *arguments], capture_output=True, text=True, env=cloud.environment,
                              stdin=subprocess.DEVNULL, timeout=300)
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def folder(tmp_path):
    """A folder with what people have lying in theirs."""
    folder = tmp_path / f"app-{uuid.uuid4().hex[:8]}"
    (folder / "node_modules").mkdir(parents=True)
    (folder / "node_modules/large").write_bytes(os.urandom(4 << 20))
    (folder / ".dockerignore").write_text("node_modules\n*.secret\n")
    (folder / "key.secret").write_text("hush")
    (folder / "Dockerfile").write_text(APP)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("run.sh")
    return folder


def test_a_folder_becomes_an_image_that_runs(cloud, dormouse, folder):
    built = dormouse("image", "build", str(folder), "--memory", "512", "--env", "COLOUR=blue", "--tag", "team=a")
    assert re.search(r"^\S+: 3 files, \d.* KiB packed$", built.stdout, re.M), built.stdout
    assert re.search(r"^#\d+ \[\d/\d\] RUN ls", built.stdout, re.M)
    assert re.search(r"^#\d+ DONE \d+\.\ds$", built.stdout, re.M)
    assert "\x1b" not in built.stdout
    assert built.stdout.endswith(f"Launch it: dormouse run {folder.name}\n")

    launched = dormouse("run", folder.name, "--idle", "300").stdout
    vm_id = launched.split()[0]
    endpoint = re.search(r"https://([^/]+)/", launched)[1]
    token = re.search(r"X-aws-proxy-auth: ([^']+)'", launched)[1]
    curl = subprocess.run(
        ["curl", "-sf", f"https://{endpoint}/made", "-H", f"X-aws-proxy-auth: {token}"],
        capture_output=True, text=True, env=cloud.environment, timeout=60)
    # .dockerignore keeps node_modules and the secret out; it and the Dockerfile are seen by COPY.
    assert curl.stdout == "Dockerfile\nlink\nrun.sh\n", curl
    assert vm_id in dormouse("ls").stdout
    assert dormouse("terminate", vm_id).stdout == f"{vm_id}\n"


def test_building_again_makes_a_new_version_from_the_cache(dormouse, folder):
    dormouse("image", "build", str(folder), "--memory", "512")
    again = dormouse("image", "build", str(folder), "--memory", "512")
    assert "version 2.0" in again.stdout
    steps = re.findall(r"^#(\d+) \[\d/\d\] (?:COPY|RUN) ", again.stdout, re.M)
    cached = re.findall(r"^#(\d+) CACHED$", again.stdout, re.M)
    assert set(steps) <= set(cached), again.stdout
    refused = dormouse("image", "build", str(folder), "--no-update", status=1)
    assert "already" in refused.stderr


def test_a_failed_build_says_which_line_and_why(dormouse, folder):
    (folder / "Dockerfile").write_text(APP.replace("RUN ls", "RUN echo before; false && ls"))
    failed = dormouse("image", "build", str(folder), "--memory", "512", status=1)
    assert re.search(r"^ > \[\d/\d\] RUN echo before", failed.stdout, re.M), failed.stdout
    assert re.search(r"^ +4 \| >>> RUN echo before", failed.stdout, re.M)
    assert "Dockerfile line 4" in failed.stderr
    assert "exit code: 1" in failed.stderr
    assert f"dormouse image build {folder}" in failed.stderr
    # The same, later and from afar.
    assert "exit code: 1" in dormouse("logs", folder.name).stdout


def test_a_build_can_be_followed_by_somebody_else(dormouse, folder):
    started = dormouse("image", "build", str(folder), "--memory", "512", "--no-follow")
    assert "dormouse logs" in started.stdout
    followed = dormouse("logs", folder.name, "--follow")
    assert re.search(r"^DONE in", followed.stdout, re.M), followed.stdout


def test_what_cannot_be_packed_is_told_before_anything_is_sent(dormouse, tmp_path, folder):
    assert "Dockerfile" in dormouse("image", "build", str(tmp_path), status=1).stderr
    (folder / "venv").symlink_to("/usr/bin/python3")
    assert "venv" in dormouse("image", "build", str(folder), status=1).stderr
    assert "absent" in dormouse("image", "build", str(tmp_path / "absent"), status=1).stderr


def test_mistakes_are_told_in_one_line(cloud, dormouse):
    for arguments in (("run", "no-such-image"), ("terminate", "microvm-none"), ("logs", "no-such-image")):
        said = dormouse(*arguments, status=1).stderr
        assert said.startswith("dormouse: ") and len(said.splitlines()) == 1, said
    nowhere = cloud.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    done = subprocess.run([BINARY, "ls"], capture_output=True, text=True, env=nowhere, timeout=60)
    assert done.returncode == 1
    assert "http://127.0.0.1:1" in done.stderr
    wrong = cloud.environment | {"AWS_SECRET_ACCESS_KEY": "x" * 40}
    done = subprocess.run([BINARY, "ls"], capture_output=True, text=True, env=wrong, timeout=60)
    assert done.returncode == 1
    assert "InvalidSignatureException" in done.stderr


def test_pruning_leaves_what_images_lie_over(cloud, dormouse, folder):
    dormouse("image", "build", str(folder), "--memory", "512")
    # A build that fails at its end leaves layers that nothing lies over.
    (folder / "Dockerfile").write_text(APP.replace("RUN ls", f"RUN echo {uuid.uuid4()} > x\nRUN false && ls"))
    dormouse("image", "build", str(folder), "--memory", "512", status=1)

    def cache():
        line = re.search(r"^build cache +(\d+) +(\S+ \S+) +(\S+) \S+$", dormouse("system", "df").stdout, re.M)
        return int(line[1]), line[3]

    before, reclaimable = cache()
    assert reclaimable != "0"
    assert dormouse("system", "prune", "--older-than", "7d").stdout.startswith("0 layers")
    pruned = dormouse("system", "prune", "--all").stdout
    count = int(pruned.split()[0])
    assert count >= 1
    assert cache() == (before - count, "0")
    launched = dormouse("run", folder.name).stdout
    dormouse("terminate", launched.split()[0])


def test_extensions_are_for_who_may(cloud):
    import http.client

    for path in ("/_dormouse/v1/system/usage", "/_dormouse/v1/builds/x/log", "/_dormouse/x"):
        connection = http.client.HTTPConnection("127.0.0.1", cloud.daemon.api_port, timeout=60)
        connection.request("GET", path)
        assert connection.getresponse().status == 403, path
        connection.close()
