"""What Dockerfiles can say, built in real VMs and looked at from inside the MicroVM that comes of it."""

import gzip
import io
import re
import tarfile
import uuid

import pytest
from harness.artifact import zip_files
from harness.cloud import ImageFailed

SERVE = 'CMD ["python3", "-m", "http.server", "8080", "--directory", "/out"]'
# A small file that seldom changes.
URL = "http://deb.debian.org/debian/dists/bookworm/Release.gpg"


def archive(mode, **files):
    """A tar of one owner, 1234:2345; the mode says how it is compressed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"packed/{name}")
            entry.size, entry.uid, entry.gid, entry.mode = len(content), 1234, 2345, 0o640
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def built(cloud):
    """Builds a Dockerfile; answers a function that reads what the app serves, and the build's log."""
    running = []

    def build(dockerfile, files=None):
        name = f"dockerfile-{uuid.uuid4().hex[:8]}"
        arn = cloud.build_image(zip_files({"Dockerfile": dockerfile, **(files or {})}), name=name)
        vm = cloud.launch(arn).running()
        running.append(vm)

        def read(path):
            answer = vm.endpoint.get(path)
            assert answer.status == 200, path
            return answer.body.decode()

        return read, cloud.build_log(arn)

    yield build
    for vm in running:
        vm.terminate()


MARK = uuid.uuid4().hex

STAGES = f"""# syntax=docker/dockerfile:1
ARG BASE=localhost/debian:12
FROM $BASE AS tools
ARG WHO=nobody
RUN echo {MARK} > /made && mkdir -p /opt/tree/sub && ln /made /opt/tree/one && ln /made /opt/tree/two \\
    && ln -s one /opt/tree/link && chmod 4755 /opt/tree/one && chown 1111:2222 /opt/tree/sub \\
    && touch -d @1000000000 /opt/tree/sub

FROM localhost/debian:12 AS unused
RUN exit 7

FROM scratch AS files
COPY --from=tools /opt/tree /tree/
COPY <<plain <<"raw" /notes/
$BASE ${{WHO:-unset}} "quoted"
plain
$BASE stays
raw

FROM tools AS child
RUN echo "arg $WHO" > /arg

FROM localhost/debian:12
ARG BASE
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /out
COPY --from=files / /from/
COPY --from=child --chown=33:44 --chmod=0604 /arg /made ./
COPY --from=localhost/debian:12 /etc/debian_version ./
COPY --from=tools --parents /opt/./tree/sub /opt/./tree/lin[k] /parents/
RUN [[ -n $BASH_VERSION ]] && shopt -q -o pipefail && echo bash > shell
RUN <<EOF
set -e
stat -c '%n %a %u:%g %h %Y' /from/tree/one /from/tree/sub > stat
stat -c '%u:%g %a' arg >> stat
[ /from/tree/one -ef /from/tree/two ] && readlink /from/tree/link >> stat
stat -c '%n %F' /parents/tree/* >> stat
cat /from/notes/plain /from/notes/raw > notes
EOF
RUN <<EOF
#!/usr/bin/env python3
import sys
open("script", "w").write(f"{{sys.version_info.major}} {{__file__}}")
EOF
RUN cat > two <<ONE && cat >> two <<TWO
$((1+1))
ONE
second
TWO
RUN ls -A /dev/pipes > pipes 2>&1 || true
VOLUME /data
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s CMD true
{SERVE}
"""


def test_stages_copies_and_here_documents(built):
    read, log = built(STAGES)
    assert read("/made").strip() == MARK
    assert read("/arg") == "arg nobody\n"
    assert read("/debian_version").startswith("12")
    assert read("/shell") == "bash\n"
    stat = read("/stat").splitlines()
    assert re.fullmatch(r"/from/tree/one 4755 0:0 2 \d+", stat[0])
    assert stat[1] == "/from/tree/sub 755 1111:2222 2 1000000000"
    assert stat[2] == "33:44 604"
    assert stat[3] == "one"
    assert stat[4:] == ["/parents/tree/link regular file", "/parents/tree/sub directory"]
    assert read("/notes") == ' unset "quoted"\n$BASE stays\n'
    assert read("/script") == "3 /dev/pipes/EOF"
    assert read("/two") == "2\nsecond\n"
    assert "No such file" in read("/pipes")
    assert "[tools 1/1] RUN echo" in log
    assert "unused" not in log

    # The same again: everything is in the cache, and no build VM boots.
    read, log = built(STAGES)
    assert read("/made").strip() == MARK
    steps = re.findall(r"^#(\d+) \[(?!internal)[^]]+\] (RUN|COPY|ADD|WORKDIR)", log, re.MULTILINE)
    cached = re.findall(r"^#(\d+) CACHED", log, re.MULTILINE)
    assert [number for number, _ in steps] == cached


MOUNTS = f"""FROM localhost/debian:12 AS other
RUN mkdir /lib-of-other && echo other > /lib-of-other/file

FROM localhost/debian:12
RUN useradd app
WORKDIR /out
RUN --mount=type=cache,target=/var/cache/mine,id={MARK} ls /var/cache/mine > cache-1; echo kept > /var/cache/mine/it
RUN --mount=type=cache,target=/elsewhere,id={MARK} cat /elsewhere/it > cache-2
RUN ls -d /var/cache/mine /elsewhere > gone 2>&1 || true
RUN --mount=type=bind,target=/ctx --mount=source=pkg/list.txt,target=/tmp/list \\
    --mount=from=other,source=/lib-of-other,target=/mnt/other \\
    cat /ctx/pkg/list.txt /tmp/list /mnt/other/file > bound; touch /ctx/x 2>&1 | grep -o 'Read-only.*' >> bound; true
RUN --mount=type=bind,target=/ctx,rw echo more > /ctx/new && ls /ctx > written
RUN --mount=type=tmpfs,target=/scratch,size=1m df --output=fstype,size /scratch | tail -1 > tmpfs
RUN --network=none grep -c eth0 /proc/net/dev > offline; grep -c lo: /proc/net/dev >> offline
RUN grep -c eth0 /proc/net/dev > online
RUN ls -A /mnt /ctx /scratch /dev/.dormouse > left 2>&1 || true
USER app
RUN --mount=type=cache,target=/home/app/.cache,uid=1000,mode=0700 touch /home/app/.cache/mine
USER root
{SERVE}
"""


def test_mounts(built):
    read, _ = built(MOUNTS, {"pkg/list.txt": "listed\n"})
    assert read("/cache-1") == ""
    assert read("/cache-2") == "kept\n"
    assert read("/gone").count("No such file") == 2
    assert read("/bound") == "listed\nlisted\nother\nRead-only file system\n"
    assert set(read("/written").split()) == {"Dockerfile", "new", "pkg"}
    assert read("/tmpfs").split() == ["tmpfs", "1024"]
    assert read("/offline").split() == ["0", "1"]
    assert read("/online").strip() == "1"
    assert read("/left").count("No such file") >= 2 and "list" not in read("/left")

    # A later build of the account finds what an earlier one left in a cache.
    read, _ = built(MOUNTS.replace("useradd app", "useradd app # again"), {"pkg/list.txt": "listed\n"})
    assert read("/cache-1") == "it\n"


def test_archives_and_fetched_files(built):
    files = {
        "plain.tar": archive("w", **{"a.txt": b"plain"}),
        "gz.tgz": archive("w:gz", **{"b.txt": b"gz"}),
        "bz.tar.bz2": archive("w:bz2", **{"c.txt": b"bz"}),
        "xz.tar.xz": archive("w:xz", **{"d.txt": b"xz"}),
        "data.gz": gzip.compress(b"no archive"),
    }
    read, _ = built(f"""FROM localhost/debian:12
WORKDIR /out
ADD *.tar *.tgz *.bz2 *.xz data.gz /out/
ADD --chown=5:6 plain.tar /out/owned
ADD --unpack=false plain.tar /out/kept.tar
COPY plain.tar /out/copied.tar
ADD {URL} /out/
ADD {URL} /out/renamed
RUN stat -c '%n %a %u:%g' packed/a.txt owned/packed/a.txt Release.gpg > stat
RUN cat packed/a.txt packed/b.txt packed/c.txt packed/d.txt > all && tar tf kept.tar > list && tar tf copied.tar >> list
RUN chmod 644 Release.gpg renamed
{SERVE}
""", files)
    assert read("/all") == "plaingzbzxz"
    assert read("/list").split() == ["packed/a.txt"] * 2
    assert read("/stat").splitlines() == [
        "packed/a.txt 640 1234:2345", "owned/packed/a.txt 640 5:6", "Release.gpg 600 0:0"]
    assert "BEGIN PGP SIGNATURE" in read("/Release.gpg")
    assert read("/renamed") == read("/Release.gpg")


@pytest.mark.parametrize(("dockerfile", "line", "words"), [
    ("FROM localhost/debian:12 AS a\nFROM localhost/debian:12\nCOPY --from=a /none /x", 3, "not found"),
    ("FROM localhost/debian:12\nRUN true\nCOPY --chown=stranger Dockerfile /x", 3, "unable to find user stranger"),
    ("FROM localhost/debian:12\nADD http://169.254.169.254/latest/meta-data /x", 2, "cannot connect"),
    ("FROM localhost/debian:12\nADD --checksum=sha256:" + "0" * 64 + f" {URL} /x", 2, "has the checksum sha256:"),
    ("FROM localhost/debian:12\nRUN --mount=type=secret,id=token,required true", 2, "secret token: not found"),
    ("FROM localhost/debian:12\nRUN --mount=type=ssh true", 2, "is not supported"),
    ("FROM localhost/debian:12\nCOPY --from=5 a b", 2, "no stage before this one"),
])
def test_a_failure_names_its_line(cloud, dockerfile, line, words):
    with pytest.raises(ImageFailed) as failed:
        cloud.build_image(zip_files({"Dockerfile": f"{dockerfile}\n{SERVE}\n"}))
    reason = failed.value.reason
    assert reason.startswith("CONTAINER_BUILD_FAILED: The container image build failed. ")
    assert f"line {line}: " in reason and words in reason, reason
