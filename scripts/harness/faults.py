"""Faults at the effects of a daemon: it ends before any of them, or one fails (tests/e2e/faults/faults.c)."""

import contextlib
import mmap
import struct
import subprocess

from .daemon import CACHE, PROJECT

SOURCE = PROJECT / "tests/e2e/faults/faults.c"
# struct orders: how many effects, the one to end at, how many failed, errno, which call, which path, where it ended.
ORDERS = struct.Struct("<QQQI32s256s288s")


class Faults:
    def __init__(self):
        library = CACHE / "faults.so"
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        path = CACHE / "faults.orders"
        path.write_bytes(bytes(ORDERS.size + 4))
        with path.open("r+b") as file:
            self.orders = mmap.mmap(file.fileno(), 0)
        # Of the daemon's process; what it starts runs without.
        self.environment = {"LD_PRELOAD": str(library), "DORMOUSE_FAULTS": str(path)}

    @property
    def effects(self):
        """How many there were since the last order."""
        return ORDERS.unpack_from(self.orders)[0]

    @property
    def failed(self):
        """How many calls were made to fail since the last order."""
        return ORDERS.unpack_from(self.orders)[2]

    @property
    def killed(self):
        """The effect that the daemon ended before."""
        return ORDERS.unpack_from(self.orders)[6].rstrip(b"\0").decode()

    def order(self, kill_at=0, error=0, call="", path=""):
        """From now on: ends the daemon before the so manieth effect, and lets calls about such a path fail."""
        ORDERS.pack_into(self.orders, 0, 0, kill_at, 0, error, call.encode(), path.encode(), b"")

    @contextlib.contextmanager
    def failing(self, call, path, error):
        self.order(error=error, call=call, path=path)
        try:
            yield
        finally:
            self.order()
