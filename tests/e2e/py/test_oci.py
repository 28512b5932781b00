"""Base images of a real registry: pulled by the command line, and built on and run in a microVM."""

import gzip
import json
import os
import subprocess
import tarfile
import uuid

import pytest
from harness.artifact import zip_files
from harness.daemon import BINARY, CACHE, free_port
from registry import PASSWORD, USER, Gate, Image, Registry, digest, tar

BASE = CACHE / "assets/base/debian-12.tar"
AWS_BASE = "public.ecr.aws/lambda/microvms:al2023-minimal"
APP = b"""
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        facts = {"args": sys.argv[1:], "uid": os.getuid(), "cwd": os.getcwd(), "greeting": os.environ.get("GREETING"),
                 "gone": os.path.exists("/etc/debian_version"), "left": sorted(os.listdir("/srv/app")),
                 "links": os.stat("/srv/app/serve.py").st_nlink, "note": os.getxattr("/srv/app/serve.py", "user.note").decode()}
        body = json.dumps(facts).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def registry(daemon, tmp_path_factory):
    registry = Registry(tmp_path_factory.mktemp("registry"), daemon.registry_port)
    yield registry
    registry.stop()


@pytest.fixture
def gate(registry):
    gate = Gate(registry)
    yield gate
    gate.close()


@pytest.fixture
def pull(tmp_path):
    """Pulls into a store of the test's own: what the command printed, or the error that it ended with."""

    def pull(reference, config="", fails=False, store="data"):
        file = tmp_path / "config.toml"
        file.write_text(config)
        command = [BINARY, "--config", file, "--data-dir", tmp_path / store, "image", "pull", reference]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout + done.stderr

    return pull


def small(text=None):
    """An image that no other test has."""
    text = text or str(uuid.uuid4())
    return Image([tar({"etc": None, "etc/name": text.encode(), "etc/more": os.urandom(100_000)})])


def file_of(tmp_path, reference, path, store="data"):
    """A file on the disk of a pulled image."""
    listed = subprocess.run(
        [BINARY, "--data-dir", tmp_path / store, "image", "list"], capture_output=True, text=True, check=True).stdout
    found = next(line.split() for line in listed.splitlines() if line.startswith(f"{reference} "))
    disk = tmp_path / store / "images/disks" / (found[1].removeprefix("sha256:") + ".raw")
    return subprocess.run(["/sbin/debugfs", "-R", f"cat {path}", disk], capture_output=True, check=True).stdout


def test_tags_move_and_digests_do_not(registry, pull, tmp_path):
    first, second = small("first"), small("second")
    name = f"{registry.address}/team/moving"
    pinned = registry.push("team/moving", "1", first)
    assert pinned in pull(f"{name}:1")
    assert file_of(tmp_path, f"{name}:1", "/etc/name") == b"first"
    # What is here is not fetched again.
    assert "pulling" not in pull(f"{name}:1")
    registry.push("team/moving", "1", second)
    assert second.digest in pull(f"{name}:1")
    assert file_of(tmp_path, f"{name}:1", "/etc/name") == b"second"
    assert "pulling" not in pull(f"{name}@{pinned}")
    assert file_of(tmp_path, f"{name}@{pinned}", "/etc/name") == b"first"
    assert "has no" in pull(f"{name}:absent", fails=True)


def test_an_index_gives_this_hosts_image(registry, pull, tmp_path):
    ours, others = small("ours"), Image([tar({"x": b"1"})], architecture="s390x")
    top = registry.push("team/multi", "1", [others, ours])
    reference = f"{registry.address}/team/multi@{top}"
    assert ours.digest in pull(reference)
    assert file_of(tmp_path, reference, "/etc/name") == b"ours"
    registry.push("team/foreign", "1", [others])
    assert "linux/s390x" in pull(f"{registry.address}/team/foreign:1", fails=True)
    registry.push("team/alone", "1", others)
    assert "linux/s390x" in pull(f"{registry.address}/team/alone:1", fails=True)


def test_faults_that_pass_are_sat_out(registry, gate, pull, tmp_path):
    registry.push("team/faults", "1", small("whole"))
    gate.faults = [("manifests/1", 429), ("manifests/1", 503), ("blobs/", 500), ("blobs/", "cut"), ("blobs/", "cut")]
    said = pull(f"{gate.address}/team/faults:1")
    assert said.count("trying again") >= 3
    assert not gate.faults
    assert file_of(tmp_path, f"{gate.address}/team/faults:1", "/etc/name") == b"whole"


def test_tampered_content_is_refused(registry, gate, pull, tmp_path):
    image = small()
    registry.push("team/tampered", "1", image)
    pinned = f"{gate.address}/team/tampered@{image.digest}"
    layer = json.loads(image.manifest)["layers"][0]["digest"]
    for path in ("manifests/", json.loads(image.manifest)["config"]["digest"], layer):
        gate.faults = [(path, "tamper")]
        assert "in place of sha256:" in pull(pinned, fails=True)
    assert not list((tmp_path / "data/images/disks").iterdir())
    assert not list((tmp_path / "data/images/pulling").iterdir())
    assert image.digest in pull(pinned)


def test_a_layer_that_lies_about_its_content_is_refused(registry, pull):
    image = small()
    config = json.loads(image.config)
    config["rootfs"]["diff_ids"] = [digest(b"something else")]
    image.config = json.dumps(config).encode()
    manifest = json.loads(image.manifest)
    manifest["config"] = Image.descriptor(manifest["config"]["mediaType"], image.config)
    image.manifest = json.dumps(manifest).encode()
    registry.push("team/liar", "1", image)
    assert "configuration says" in pull(f"{registry.address}/team/liar:1", fails=True)


@pytest.mark.parametrize("kind", ["basic", "token"])
def test_credentials(registry, tmp_path, pull, kind):
    gate = Gate(registry, auth=kind)
    registry.push("team/private", "1", small("secret"))
    name = f"{gate.address}/team/private:1"
    assert "denies access" in pull(name, fails=True)
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    config = f'[registry."{gate.address}"]\nusername = "{USER}"\npassword_file = "{password}"\n'
    said = pull(name, config)
    assert PASSWORD not in said
    assert file_of(tmp_path, name, "/etc/name") == b"secret"
    if kind == "token":
        # One token does for the manifest, the configuration and the layers.
        assert len([asked for asked in gate.asked if "/token?" in asked]) == 2
    password.write_text("wrong")
    assert "denies access" in pull(name, config, fails=True, store="other")
    gate.close()


def test_mirrors_come_first_and_may_fail(registry, pull, tmp_path):
    registry.push("library/mirrored", "1", small("mirrored"))
    nobody = f"http://127.0.0.1:{free_port()}"
    config = f'[registry]\nmirrors = {{ "docker.io" = ["{nobody}", "http://{registry.address}"] }}\n'
    said = pull("mirrored:1", config)
    assert "asking the next server" in said
    assert file_of(tmp_path, "docker.io/library/mirrored:1", "/etc/name") == b"mirrored"


def test_what_stands_in_for_a_registry_out_of_reach(registry, pull, tmp_path):
    local = tmp_path / "local.tar"
    local.write_bytes(tar({"etc": None, "etc/name": b"local"}))
    image = ["image", "import", "--name", "localhost/debian:12", local]
    subprocess.run([BINARY, "--data-dir", tmp_path / "data", *image], check=True)
    nobody = f"127.0.0.1:{free_port()}"
    config = (
        f'[registry.aliases]\n"debian:12" = "localhost/debian:12"\n'
        f'[registry.fallbacks]\n"{nobody}/a:1" = "localhost/debian:12"\n'
    )
    assert "is an alias of localhost/debian:12" in pull("debian:12", config)
    said = pull(f"{nobody}/a:1", config)
    assert "cannot be reached" in said and "in place of" in said
    assert "cannot be reached" in pull(f"{nobody}/b:1", config, fails=True)
    # A copy from before is better than nothing.
    gate = Gate(registry)
    image = small()
    registry.push("team/copy", "1", image)
    pull(f"{gate.address}/team/copy:1")
    gate.close()
    assert "pulled before" in pull(f"{gate.address}/team/copy:1")


def test_archives_are_told_apart(tmp_path):
    image = Image([tar({"etc": None, "etc/name": b"archive"}), tar({"etc/two": b"2"})])
    name = digest(image.config)[7:]
    folders = ["a" * 64, "b" * 64]
    saved = {f"{name}.json": image.config, "manifest.json": json.dumps([{
        "Config": f"{name}.json", "RepoTags": ["team/app:1"], "Layers": [f"{folder}/layer.tar" for folder in folders],
    }]).encode()}
    saved |= {f"{folder}/layer.tar": layer for folder, layer in zip(folders, image.plain, strict=True)}
    kind = "application/vnd.oci.image.manifest.v1+json"
    layout = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(
        {"schemaVersion": 2, "manifests": [Image.descriptor(kind, image.manifest)]}).encode()}
    layout |= {f"blobs/sha256/{digest(blob)[7:]}": blob for blob in (image.config, image.manifest, *image.layers)}
    for path, content in layout.items():
        file = tmp_path / "layout" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tmp_path / "layout.tar").write_bytes(tar(layout))
    (tmp_path / "saved.tar").write_bytes(tar(saved))
    (tmp_path / "saved.tar.gz").write_bytes(gzip.compress(tar(saved)))
    (tmp_path / "root.tar.gz").write_bytes(gzip.compress(tar({"etc": None, "etc/name": b"archive"})))
    for file, expected in [
        ("layout", image.digest), ("layout.tar", image.digest), ("saved.tar", f"sha256:{name}"),
        ("saved.tar.gz", f"sha256:{name}"), ("root.tar.gz", "sha256:"),
    ]:
        reference = f"localhost/{file.replace('.', '-')}:1"
        command = [BINARY, "--data-dir", tmp_path / "data", "image", "import", "--name", reference, tmp_path / file]
        assert expected in subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert file_of(tmp_path, reference, "/etc/name") == b"archive"


def test_build_from_a_digest_and_run(registry, cloud):
    note = tarfile.TarInfo()
    note.pax_headers = {"SCHILY.xattr.user.note": "kept"}
    link = tarfile.TarInfo()
    link.type, link.linkname = tarfile.LNKTYPE, "srv/app/serve.py"
    app = tar({
        "srv/app": None, "srv/app/old": b"", "srv/app/serve.py": (note, APP), "srv/app/again.py": (link, None),
        "etc/.wh.debian_version": b"",
    })
    opaque = tar({"srv/app/.wh.old": b""})
    image = Image([BASE.read_bytes(), app, opaque], {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=from the base"], "User": "1000:1000",
        "WorkingDir": "/srv/app", "Entrypoint": ["python3", "/srv/app/serve.py"], "Cmd": ["from-cmd"],
    })
    top = registry.push("team/app", "1", [Image([app], architecture="s390x"), image])
    reference = f"{registry.address}/team/app@{top}"
    arn = cloud.build_image(zip_files({"Dockerfile": f"FROM {reference}\n"}))
    log = cloud.build_log(arn)
    assert "layer 1/3" in log and image.digest in log
    with cloud.launch(arn) as vm:
        facts = json.loads(vm.running().endpoint.get("/").body)
    assert facts == {
        "args": ["from-cmd"], "uid": 1000, "cwd": "/srv/app", "greeting": "from the base", "gone": False,
        "left": ["again.py", "serve.py"], "links": 2, "note": "kept",
    }
