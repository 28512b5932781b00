"""A small file system in a file, so that a test can fill it without filling the host's."""

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

from harness.polling import until


class SmallDisk:
    """An ext4 of `gib` GiB, mounted at `folder`."""

    def __init__(self, folder, gib):
        self.folder = Path(folder)
        self.file = self.folder.with_suffix(".ext4")
        self.gib = gib

    def mount(self):
        self.unmount()
        self.folder.mkdir(parents=True)
        with self.file.open("wb") as file:
            file.truncate(self.gib << 30)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", self.file], check=True)
        subprocess.run(["mount", "-o", "loop", self.file, self.folder], check=True)

    def unmount(self):
        subprocess.run(["umount", "--quiet", self.folder], check=False, capture_output=True)
        # Of what is still mounted nothing is deleted.
        if not self.folder.is_mount():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def full(self, left_bytes):
        """Has room for so much and no more."""
        filler = self.folder / "filler"
        try:
            # Others write meanwhile: what was free may be gone before it is taken.
            until(lambda: self.fill(filler, left_bytes), f"{self.folder} is full")
            yield
        finally:
            filler.unlink()

    def fill(self, filler, left_bytes):
        """Whether it could be filled."""
        with filler.open("wb") as file:
            disk = os.statvfs(self.folder)
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - left_bytes))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return False
        return True
