"""Secrets on the disk: sealed, and of no use without the key that seals them."""

import shutil
import subprocess

from harness.daemon import BINARY


def test_no_secret_lies_open_in_the_data_directory(cloud, vm):
    secret = cloud.environment["AWS_SECRET_ACCESS_KEY"].encode()
    data = cloud.daemon.data_dir
    sealed = [*data.glob("keys/*"), data / "tls/ca.key"]
    assert len(sealed) >= 3
    for path in sealed:
        assert path.read_bytes().startswith(b"dormouse-sealed 1 "), path
        assert path.stat().st_mode & 0o777 == 0o600
    assert (data / "sealing.key").stat().st_mode & 0o777 == 0o600
    for path in [*sealed, *data.glob("dormouse.db*"), cloud.daemon.log]:
        assert secret not in path.read_bytes(), path
    records = b"".join(path.read_bytes() for path in data.glob("dormouse.db*"))
    # The id is what a record is found by; its body has the endpoint, and shows none.
    assert vm.id.encode() in records
    assert vm.address.partition(".")[0].encode() not in records


def test_a_start_without_the_right_key_says_so_and_makes_no_other(cloud, tmp_path):
    key = tmp_path / "sealing.key"
    shutil.copytree(cloud.daemon.data_dir / "keys", tmp_path / "keys")
    said = refused_start(tmp_path)
    assert "is sealed and the sealing key" in said and str(key) in said
    assert not key.exists()
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    said = refused_start(tmp_path)
    assert "is sealed with key" in said and str(tmp_path / "keys") in said and str(key) in said
    key.chmod(0o644)
    assert "chmod 600" in refused_start(tmp_path)


def refused_start(data_dir):
    start = subprocess.run(
        [BINARY, "serve", "--data-dir", data_dir], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert start.returncode == 1, start
    return start.stderr
