"""A small file system in a file, so that a test can fill it without filling the host's."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path


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
        with filler.open("wb") as file:
            disk = os.statvfs(self.folder)
            os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - left_bytes))
        try:
            yield
        finally:
            filler.unlink()
