"""Keeps MicroVMs under random faults for a while and checks that nothing is lost (`make soak`).

VMS MicroVMs are visited, written to, suspended, woken and replaced at random, while every now and then the daemon is
killed with -9 and started again, a machine is killed, or the disk is full for some seconds, with or without an end of
the daemon meanwhile. What the app of each has confirmed, in memory and on disk, must be there ever after, unless its
machine was killed. At the end all are terminated, and nothing may be left of them on the host.

DORMOUSE_SOAK_SECONDS (default 900), DORMOUSE_SOAK_VMS (default 30) and DORMOUSE_SOAK_SEED say how long, how many and
which; the seed is printed. DORMOUSE_TEST_ACCEL (default auto) says how the guests are executed.
"""

import collections
import concurrent.futures
import http.client
import os
import random
import signal
import sys
import threading
import time
import traceback
import uuid

from botocore.exceptions import BotoCoreError, ClientError
from harness.artifact import zip_folder
from harness.cloud import Cloud
from harness.daemon import CACHE, PROJECT, Daemon
from harness.disk import SmallDisk
from harness.host import leftovers, slots

SECONDS = int(os.environ.get("DORMOUSE_SOAK_SECONDS", "900"))
VMS = int(os.environ.get("DORMOUSE_SOAK_VMS", "30"))
SEED = int(os.environ.get("DORMOUSE_SOAK_SEED", str(random.SystemRandom().randrange(10**6))))
CLIENTS = 4
DISK = SmallDisk(CACHE / "soak", 24)
# What a full disk still has room for: the daemon's own records.
LEFT_BYTES = 8 << 20
FULL_S = 10
# Between two faults.
CALM_S = (15, 40)
NEVER = (600, 28_800, True)
UNCERTAIN = (OSError, http.client.HTTPException, BotoCoreError, ClientError, TimeoutError)
ENDED = ("TERMINATING", "TERMINATED")
CONFIG = '[limits]\nin_flight = "off"\nrequests_per_second = "off"\nbandwidth_mb_per_second = "off"\n'


class Lost(Exception):
    """Something that was confirmed is not there."""


class Life:
    """One MicroVM, and what is known of it."""

    def __init__(self, cloud, image):
        self.cloud = cloud
        self.image = image
        self.lock = threading.Lock()
        self.vm = None
        # Whether it was made to end.
        self.was_ended = False

    def begin(self):
        self.vm = self.cloud.launch(self.image, idle=NEVER)
        self.was_ended = False
        self.confirmed = self.attempted = 0
        # What its file may hold: more than one where a write was not answered.
        self.notes = {None}

    def visit(self):
        self.attempted += 1
        counter = self.ask("GET", "/")["counter"]
        if not self.confirmed < counter <= self.attempted:
            raise Lost(f"{self.vm.id} counts {counter} after {self.confirmed} confirmed of {self.attempted} visits")
        self.confirmed = counter

    def write(self):
        note = str(uuid.uuid4())
        self.notes.add(note)
        self.ask("POST", "/file", note.encode())
        self.notes = {note}

    def read(self):
        note = self.ask("GET", "/file")["file"]
        if note not in self.notes:
            raise Lost(f"{self.vm.id} has {note} in its file, not one of {self.notes}")
        self.notes = {note}

    def suspend(self):
        self.vm.suspend()

    def resume(self):
        self.vm.resume()

    def replace(self):
        self.was_ended = True
        self.vm.terminate()
        self.begin()

    def ask(self, method, path, body=None):
        answer = self.vm.endpoint.request(method, path, body)
        if answer.status != 200:
            raise OSError(f"status {answer.status}: {answer.body[:200]}")
        return answer.json()

    def is_over(self):
        """Whether it has ended; unless it was made to, that is a loss."""
        record = self.vm.get()
        if record["state"] not in ENDED:
            return False
        if not self.was_ended:
            raise Lost(f"{self.vm.id} is {record['state']}: {record.get('stateReason')}")
        return True


ACTIONS = {"visit": 10, "write": 3, "read": 3, "suspend": 4, "resume": 1, "replace": 1}


class Soak:
    def __init__(self, daemon, cloud, image):
        self.daemon = daemon
        self.chance = random.Random(SEED)
        self.lives = [Life(cloud, image) for _ in range(VMS)]
        self.counts = collections.Counter()
        self.losses = []
        self.slowest = collections.defaultdict(float)
        self.stop = threading.Event()

    def run(self):
        for life in self.lives:
            life.begin()
        say(f"{VMS} MicroVMs launched")
        with concurrent.futures.ThreadPoolExecutor(CLIENTS + 1) as pool:
            clients = [pool.submit(self.client, random.Random(SEED + n)) for n in range(CLIENTS)]
            try:
                self.trouble(time.monotonic() + SECONDS)
            finally:
                self.stop.set()
            for client in clients:
                client.result()
        say("the last look at each")
        for life in self.lives:
            self.settle(life)

    def client(self, chance):
        while not self.stop.is_set():
            life = chance.choice(self.lives)
            if not life.lock.acquire(blocking=False):
                continue
            try:
                self.act(life, chance.choices(list(ACTIONS), ACTIONS.values())[0])
            finally:
                life.lock.release()

    def act(self, life, action):
        began = time.monotonic()
        try:
            getattr(life, action)()
            self.counts[action] += 1
            self.slowest[action] = max(self.slowest[action], time.monotonic() - began)
        except Lost as loss:
            self.lose(loss)
        except UNCERTAIN as error:
            self.counts[f"{action}: {reason(error)}"] += 1
            self.look_after(life)
        except Exception:
            self.lose(traceback.format_exc())

    def look_after(self, life):
        """Something went wrong: either it is over, which has to have a cause, or it goes on."""
        try:
            if life.is_over():
                self.counts["ended on purpose"] += 1
                life.begin()
        except Lost as loss:
            self.lose(loss)
            life.was_ended = True
        except UNCERTAIN:
            # No daemon now. It is looked at again.
            time.sleep(0.2)

    def lose(self, loss):
        say(f"LOST: {loss}")
        self.losses.append(str(loss))

    def trouble(self, until):
        faults = [self.kill_daemon, self.kill_machine, self.fill_disk, self.kill_daemon_on_a_full_disk]
        while time.monotonic() < until and not self.losses:
            time.sleep(min(self.chance.uniform(*CALM_S), max(0, until - time.monotonic())))
            fault = self.chance.choice(faults)
            say(f"{fault.__name__.replace('_', ' ')}; so far {sum(self.counts[a] for a in ACTIONS)} actions")
            fault()
            self.counts[fault.__name__] += 1

    def kill_daemon(self):
        self.daemon.kill()
        time.sleep(self.chance.uniform(0, 2))
        began = time.monotonic()
        self.daemon.start()
        self.slowest["start of the daemon"] = max(self.slowest["start of the daemon"], time.monotonic() - began)

    def kill_machine(self):
        pids = self.daemon.machine_pids()
        lives = [life for life in self.lives if life.vm.id in pids]
        if lives:
            life = self.chance.choice(lives)
            with life.lock:
                pid = self.daemon.machine_pids().get(life.vm.id)
                if pid:
                    life.was_ended = True
                    os.kill(pid, signal.SIGKILL)

    def fill_disk(self):
        with DISK.full(LEFT_BYTES):
            time.sleep(FULL_S)

    def kill_daemon_on_a_full_disk(self):
        with DISK.full(LEFT_BYTES):
            time.sleep(FULL_S / 2)
            self.kill_daemon()
            time.sleep(FULL_S / 2)

    def settle(self, life):
        """Each must answer with all that it has confirmed."""
        for action in ("visit", "read"):
            for _ in range(30):
                before = self.counts[action]
                self.act(life, action)
                if self.counts[action] > before or self.losses:
                    break
                time.sleep(1)
            else:
                self.lose(f"{life.vm.id} does not answer any more")


def reason(error):
    if isinstance(error, ClientError):
        return error.response["Error"]["Code"]
    text = str(error)
    return text.split(":")[0] if text.startswith("status") else type(error).__name__


def say(text):
    print(f"soak: {text}", flush=True)


def main():
    say(f"{SECONDS} s, {VMS} MicroVMs, DORMOUSE_SOAK_SEED={SEED}")
    DISK.mount()
    before = slots()
    config = DISK.folder / "daemon.toml"
    config.write_text(CONFIG)
    log = CACHE / "soak.log"
    log.unlink(missing_ok=True)
    accel = os.environ.get("DORMOUSE_TEST_ACCEL", "auto")
    daemon = Daemon(DISK.folder / "data", log, options=["--config", str(config), "--accel", accel])
    try:
        daemon.start()
        cloud = Cloud(daemon, daemon.environment())
        image = cloud.build_image(zip_folder(PROJECT / "examples/hello"), name="soak")
        soak = Soak(daemon, cloud, image)
        soak.run()
        say("the end of all")
        cloud.terminate_all(timeout_s=180)
        daemon.stop()
        left = leftovers(daemon, before)
    finally:
        daemon.sweep()
        DISK.unmount()
    print(f"\n{'actions':40}{'times':>8}{'slowest':>12}")
    for name, count in sorted(soak.counts.items()):
        slowest = f"{soak.slowest[name]:10.2f} s" if name in soak.slowest else ""
        print(f"{name:40}{count:8}{slowest:>12}")
    print(f"{'start of the daemon':40}{'':8}{soak.slowest['start of the daemon']:10.2f} s")
    panics = [line for line in log.read_text(errors="replace").splitlines() if "panicked" in line]
    for what in soak.losses + left + panics:
        print(f"soak: LOST OR LEFT: {what}")
    if soak.losses or left or panics:
        print(f"soak: FAILED (DORMOUSE_SOAK_SEED={SEED}; the daemon's log is {log})")
        return 1
    print(f"soak: nothing was lost and nothing is left (DORMOUSE_SOAK_SEED={SEED})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
