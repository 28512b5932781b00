"""Artifacts and Dockerfiles that cannot become an image: each ends in CREATE_FAILED, a reason and a log."""

import io
import stat
import uuid
import zipfile

import pytest
from harness.artifact import zip_files
from harness.cloud import ImageFailed

APP = """FROM localhost/debian:12
CMD ["python3", "-m", "http.server", "8080"]
"""


@pytest.fixture
def failure(cloud):
    """Builds an artifact that must fail, and returns why it did."""

    def build(artifact, **more):
        with pytest.raises(ImageFailed) as failed:
            cloud.build_image(artifact, **more)
        image = cloud.vms.get_microvm_image(imageIdentifier=failed.value.image_arn)
        assert image["latestFailedImageVersion"] == "1.0"
        assert image.get("latestActiveImageVersion") is None
        with pytest.raises(cloud.vms.exceptions.ResourceNotFoundException):
            cloud.launch(failed.value.image_arn)
        return failed.value

    return build


def zip_with(name, content=b"x", mode=stat.S_IFREG | 0o644):
    """A good artifact with one more entry, of this name and kind."""
    archive = io.BytesIO(zip_files({"Dockerfile": APP}))
    with zipfile.ZipFile(archive, "a") as out:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        out.writestr(entry, content)
    return archive.getvalue()


def test_not_a_zip(failure):
    assert failure(b"this is not a zip archive").reason.startswith("ARCHIVE_INVALID")


def test_empty_artifact(failure):
    assert failure(b"").reason.startswith("ARCHIVE_INVALID")


def test_truncated_zip(failure):
    whole = zip_files({"Dockerfile": APP, "data": uuid.uuid4().bytes * 1000})
    assert failure(whole[: len(whole) // 2]).reason.startswith("ARCHIVE_INVALID")


def test_missing_artifact(cloud, failure, monkeypatch):
    monkeypatch.setattr(cloud, "upload", lambda _: "s3://artifacts/absent.zip")
    assert failure(b"").reason.startswith("S3_NO_SUCH_KEY")


def test_no_dockerfile(failure):
    artifact = zip_files({"app/Dockerfile": APP})
    assert failure(artifact).reason.startswith("ARCHIVE_DOCKERFILE_NOT_FOUND")


def test_zip_bomb(failure):
    # Past 64 MiB nothing may unpack to more than 200 times its size; zeros give 1000 times.
    bomb = zip_files({"Dockerfile": APP, "zeros": bytes(256 << 20)})
    assert len(bomb) < 1 << 20
    reason = failure(bomb).reason
    assert reason.startswith("ARCHIVE_INVALID")
    assert "times its size" in reason


@pytest.mark.parametrize("name", ["../escape", "a/../../escape", "/etc/escape", "..\\escape"])
def test_path_traversal(failure, name):
    reason = failure(zip_with(name)).reason
    assert reason.startswith("ARCHIVE_INVALID")
    assert "escape" in reason


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd"])
def test_symlink_escape(failure, target):
    reason = failure(zip_with("innocent", target.encode(), stat.S_IFLNK | 0o777)).reason
    assert reason.startswith("ARCHIVE_INVALID")
    assert "innocent" in reason


def test_file_through_a_symlink(failure):
    archive = io.BytesIO(zip_with("dir", b"/tmp", stat.S_IFLNK | 0o777))
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("dir/escape", "x")
    assert failure(archive.getvalue()).reason.startswith("ARCHIVE_INVALID")


def test_unknown_from(failure):
    reason = failure(zip_files({"Dockerfile": "FROM localhost/absent:1\n"})).reason
    assert reason.startswith("CONTAINER_BUILD_FAILED")
    assert "localhost/absent:1" in reason


def test_nonsense_dockerfile(failure):
    reason = failure(zip_files({"Dockerfile": "FROM localhost/debian:12\nFLY to the moon\n"})).reason
    assert reason.startswith("CONTAINER_BUILD_FAILED")
    assert "line 2" in reason


def test_copy_of_a_missing_file(failure):
    reason = failure(zip_files({"Dockerfile": f"{APP}COPY absent /x\n"})).reason
    assert "absent" in reason


def test_failing_run_shows_output_and_exit_code(failure):
    dockerfile = f"{APP}RUN echo out-$((6*7)); echo err-$((7*7)) >&2; exit 23\n"
    failed = failure(zip_files({"Dockerfile": dockerfile}))
    assert "exit code: 23" in failed.reason
    assert "out-42" in failed.log
    assert "err-49" in failed.log
    assert "exit code: 23" in failed.log


def test_app_that_exits_at_once(failure):
    dockerfile = 'FROM localhost/debian:12\nCMD ["sh", "-c", "echo last words; exit 7"]\n'
    failed = failure(zip_files({"Dockerfile": dockerfile}))
    assert "exited with code 7" in failed.reason
    assert "last words" in failed.log


def test_app_that_does_not_exist(failure):
    failed = failure(zip_files({"Dockerfile": 'FROM localhost/debian:12\nCMD ["/no/such/program"]\n'}))
    assert "/no/such/program" in failed.reason


def test_app_that_never_is_ready(failure):
    hooks = {"port": 9000, "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 5}}
    failed = failure(zip_files({"Dockerfile": 'FROM localhost/debian:12\nCMD ["sleep", "1000"]\n'}), hooks=hooks)
    assert failed.reason == "Ready hook invocation timed out after PT5S"


def test_app_that_never_listens_answers_502(cloud):
    image = cloud.build_image(zip_files({"Dockerfile": 'FROM localhost/debian:12\nCMD ["sleep", "100000"]\n'}))
    with cloud.launch(image) as vm:
        answer = vm.running().endpoint.get("/")
        assert (answer.status, answer.body) == (502, b"")
        assert vm.state == "RUNNING"
