"""The whole of Dormouse in a few minutes, with the AWS CLI and curl (`make demo`).

A zip with a Dockerfile goes to S3, becomes an image inside a virtual machine, is launched from its snapshot,
answers over HTTPS, falls asleep, is woken by the next request with everything in place, and is terminated.
Ends with a table of times, and with an error when a launch or a wake is not several times faster than a boot.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time

from harness.artifact import zip_folder
from harness.cloud import Cloud
from harness.daemon import CACHE, PROJECT, Daemon, port_is_free
from harness.endpoint import TOKEN_HEADER

HOME = CACHE / "demo"
AWS = CACHE / "venv/bin/aws"
API_PORT, INGRESS_PORT = 9400, 9443
ROLE = "arn:aws:iam::000000000000:role/build"
# The shortest that the API allows.
IDLE_S = 60
IDLE_SUSPEND_MAX_S = 30
BUILD_MAX_S = 600
TIMES_FASTER_MIN = 5


class DemoFailed(Exception):
    """Something is not as it must be."""


class Story:
    """Tells the steps, each with the time that it took."""

    def __init__(self):
        self.began = time.monotonic()

    def say(self, text):
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def step(self, title):
        return Step(self, title)


class Step:
    def __init__(self, story, title):
        self.story, self.title = story, title

    def __enter__(self):
        print(flush=True)
        self.story.say(self.title)
        self.began = time.monotonic()
        return self

    def __exit__(self, kind, *_):
        self.seconds = time.monotonic() - self.began
        if kind is None:
            self.story.say(f"done in {self.seconds:.2f} s")


class Shell:
    """Runs commands as a user would type them, in the environment of `dormouse env`."""

    def __init__(self, environment):
        self.environment = environment | {"PATH": f"{AWS.parent}:{environment['PATH']}"}
        self.shown = None

    def run(self, *command, show=None):
        show = show or shlex.join(command)
        # A command that is repeated until its answer changes is shown once.
        if show != self.shown:
            print(f"  $ {show}", flush=True)
        self.shown = show
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              env=self.environment, cwd=HOME, timeout=120)
        if done.returncode:
            raise DemoFailed(f"{command[0]}: exit status {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def aws(self, *command):
        output = self.run("aws", *command)
        return json.loads(output) if output.startswith("{") else output

    def curl(self, endpoint, token, path, *options):
        """The app's answer, and the milliseconds that curl waited for it."""
        command = ("curl", "--silent", "--show-error", "--fail", "--max-time", "90", "--write-out", "\n%{time_total}",
                   *options, "--header", f"{TOKEN_HEADER}: {token}", f"https://{endpoint}{path}")
        visible = ("curl", *options, "--header", f"{TOKEN_HEADER}: $TOKEN", f"https://{endpoint}{path}")
        body, _, seconds = self.run(*command, show=" ".join(visible)).rpartition("\n")
        print(f"  {body.strip()}", flush=True)
        return json.loads(body), float(seconds) * 1000


def main():
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    ports = (API_PORT, INGRESS_PORT) if port_is_free(API_PORT) and port_is_free(INGRESS_PORT) else (None, None)
    daemon = Daemon(HOME / "data", HOME / "daemon.log", *ports)
    story = Story()
    try:
        return tell(story, daemon)
    except Exception as error:
        story.say(f"FAILED: {error}")
        print(f"\nThe end of the daemon's log ({daemon.log}):\n{daemon.tail()}", file=sys.stderr)
        return 1
    finally:
        daemon.sweep()


def tell(story, daemon):
    with story.step("Start `dormouse serve`, and learn from `dormouse env` how to reach it"):
        daemon.start()
        shell = Shell(daemon.environment())
        print(f"  $ eval $(dormouse env --data-dir {daemon.data_dir})")
    times = {}
    with story.step("Upload examples/hello, a Dockerfile and a small web server, to S3"):
        (HOME / "hello.zip").write_bytes(zip_folder(PROJECT / "examples/hello"))
        shell.aws("s3", "mb", "s3://apps")
        shell.aws("s3", "cp", "hello.zip", "s3://apps/hello.zip")
    with story.step("Build an image from it inside a VM, and snapshot it with the app running") as step:
        image = build(shell)
    times["build"] = step.seconds * 1000
    times["cold boot"] = cold_boot_ms(daemon)
    with story.step("Launch a MicroVM from the snapshot, and ask its app"):
        vm, endpoint, token = launch(shell, image)
        for _ in range(3):
            shell.curl(endpoint, token, "/")
        shell.curl(endpoint, token, "/file", "--data", "remember me")
        before, _ = shell.curl(endpoint, token, "/state")
    with story.step(f"Leave it alone: after {IDLE_S} seconds it is suspended. Meanwhile, time another one"):
        times |= measure(Cloud(daemon, shell.environment), image)
        wait_until_asleep(shell, vm)
    with story.step("The next request wakes it: memory, file and process are as they were"):
        after, times["resume to first answer"] = shell.curl(endpoint, token, "/state")
        check_survival(before, after)
        visit, _ = shell.curl(endpoint, token, "/")
        expect(visit["counter"] == before["counter"] + 1, "the counter goes on")
    with story.step("Terminate it"):
        shell.aws("lambda-microvms", "terminate-microvm", "--microvm-identifier", vm)
        wait_for(lambda: vm_state(shell, vm) == "TERMINATED", 30, "the MicroVM terminates")
    expect(daemon.stop() == 0, "the daemon ends well")
    return verdict(story, times)


def build(shell):
    base = shell.aws("lambda-microvms", "list-managed-microvm-images")["items"][0]["imageArn"]
    image = shell.aws(
        "lambda-microvms", "create-microvm-image", "--name", "hello", "--code-artifact", "uri=s3://apps/hello.zip",
        "--base-image-arn", base, "--build-role-arn", ROLE, "--resources", "minimumMemoryInMiB=512")["imageArn"]

    def built():
        state = shell.aws("lambda-microvms", "get-microvm-image", "--image-identifier", image)["state"]
        expect(state != "CREATE_FAILED", "the build succeeds")
        return state == "CREATED"

    wait_for(built, BUILD_MAX_S, "the image is built")
    return image


def launch(shell, image):
    vm = shell.aws(
        "lambda-microvms", "run-microvm", "--image-identifier", image, "--idle-policy",
        f"maxIdleDurationSeconds={IDLE_S},suspendedDurationSeconds=600,autoResumeEnabled=true")
    token = shell.aws(
        "lambda-microvms", "create-microvm-auth-token", "--microvm-identifier", vm["microvmId"],
        "--expiration-in-minutes", "30", "--allowed-ports", "port=8080")["authToken"][TOKEN_HEADER]
    return vm["microvmId"], vm["endpoint"], token


def measure(cloud, image):
    """Times a launch and a suspend with a client that is loaded: the AWS CLI takes a second to start."""
    began = time.monotonic()
    vm = cloud.launch(image)
    answer = vm.endpoint.get("/")
    launched = time.monotonic()
    expect(answer.status == 200, "a launched app answers")
    vm.suspend()
    vm.wait("SUSPENDED")
    suspended = time.monotonic()
    vm.terminate()
    return {"launch to first answer": (launched - began) * 1000, "suspend": (suspended - launched) * 1000}


def wait_until_asleep(shell, vm):
    deadline = IDLE_S + IDLE_SUSPEND_MAX_S
    wait_for(lambda: vm_state(shell, vm) == "SUSPENDED", deadline, "the idle MicroVM is suspended", pause_s=5)


def vm_state(shell, vm):
    return shell.aws("lambda-microvms", "get-microvm", "--microvm-identifier", vm)["state"]


def check_survival(before, after):
    for what in ("counter", "file", "child_pid", "hostname"):
        expect(after[what] == before[what], f"{what} survives: {before[what]!r}, {after[what]!r}")
    expect(after["child_alive"] and after["child_ticks"] >= before["child_ticks"], "its process goes on")
    expect(abs(after["time"] - time.time()) < 5, "its clock is right")
    expect(after["random"] != before["random"], "its random numbers are fresh")


def cold_boot_ms(daemon):
    (times,) = daemon.data_dir.glob("builds/*/times.json")
    return json.loads(times.read_text())["cold_boot_ms"]


def wait_for(condition, timeout_s, what, pause_s=1):
    deadline = time.monotonic() + timeout_s
    while not condition():
        expect(time.monotonic() < deadline, f"{what} within {timeout_s} s")
        time.sleep(pause_s)


def expect(condition, what):
    if not condition:
        raise DemoFailed(f"expected: {what}")


def verdict(story, times):
    """Prints the table; the exit status says whether snapshots beat booting by enough."""
    cold = times["cold boot"]
    order = ("build", "cold boot", "launch to first answer", "suspend", "resume to first answer")
    print(f"\n{'':24}{'time':>12}{'cold boot / time':>20}")
    for name in order:
        ratio = f"{cold / times[name]:.1f}" if name not in ("build", "cold boot") else ""
        print(f"{name:24}{times[name]:9.0f} ms{ratio:>20}")
    slow = [name for name in ("launch to first answer", "resume to first answer")
            if times[name] * TIMES_FASTER_MIN > cold]
    print()
    if slow:
        story.say(f"FAILED: not {TIMES_FASTER_MIN} times faster than a cold boot: {', '.join(slow)}")
        return 1
    story.say("The demo is complete.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
