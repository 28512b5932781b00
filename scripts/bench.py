"""Measures what a user waits for, and what a clone costs (`make bench`).

Each figure is of RUNS runs after one that does not count, with a client that is loaded: from the API call, or the
request, to the app's answer. Prints a table and writes target/bench.json.
"""

import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

from harness.artifact import zip_files, zip_folder
from harness.cloud import Cloud
from harness.daemon import CACHE, PROJECT, Daemon

HOME = CACHE / "bench"
RESULT = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target")) / "bench.json"
RUNS = int(os.environ.get("DORMOUSE_BENCH_RUNS", "20"))
COLD_BOOTS = int(os.environ.get("DORMOUSE_BENCH_COLD_BOOTS", "10"))
CLONES = 20
NEVER = (600, 600, True)
PERCENTILES = (50, 95, 99)


def main():
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    daemon = Daemon(HOME / "data", HOME / "daemon.log", options=accel_options())
    try:
        daemon.start()
        cloud = Cloud(daemon, daemon.environment())
        result = measure(cloud)
        cloud.terminate_all()
        daemon.stop()
    except BaseException:
        if daemon.log.exists():
            print(daemon.tail(), file=sys.stderr)
        raise
    finally:
        daemon.sweep()
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    return 0


def accel_options():
    accel = os.environ.get("DORMOUSE_TEST_ACCEL")
    return ["--accel", accel] if accel else []


def measure(cloud):
    app = zip_folder(PROJECT / "examples/hello")
    image = cloud.build_image(app, name="hello")
    say(f"{COLD_BOOTS} cold boots")
    cold = [cold_boot_ms(cloud, image), *(cold_boot_ms(cloud, rebuilt(cloud, n)) for n in range(1, COLD_BOOTS))]
    cycle(cloud, image)
    say(f"{RUNS} launches, suspends and resumes")
    launch, suspend, resume = zip(*(cycle(cloud, image) for _ in range(RUNS)), strict=True)
    say(f"memory of {CLONES} clones")
    pss = clone_pss_mib(cloud, image)
    result = {
        "launch": percentiles(launch), "resume": percentiles(resume), "suspend": percentiles(suspend),
        "cold_boot": percentiles(cold), "pss_mib": percentiles(pss), "runs": RUNS, "clones": CLONES,
        "cold_boots": COLD_BOOTS,
    }
    result["ratio_cold_boot_launch"] = round(result["cold_boot"]["p50"] / result["launch"]["p50"], 2)
    result["ratio_cold_boot_resume"] = round(result["cold_boot"]["p50"] / result["resume"]["p50"], 2)
    return result


def rebuilt(cloud, number):
    """Another image of the same app: its steps come from the cache, its boot is a boot of its own."""
    files = {
        path.name: path.read_bytes() for path in (PROJECT / "examples/hello").iterdir() if path.is_file()
    }
    files["Dockerfile"] += f"LABEL bench={number}\n".encode()
    return cloud.build_image(zip_files(files), name=f"hello-{number}")


def cold_boot_ms(cloud, image):
    """Start of a VM without a snapshot to its app listening, as the build that booted it noted."""
    build = cloud.build(image)["buildId"]
    times = json.loads((cloud.daemon.data_dir / "builds" / build / "times.json").read_text())
    return times["cold_boot_ms"]


def cycle(cloud, image):
    """Milliseconds of one launch, suspend and resume."""
    began = time.perf_counter()
    vm = cloud.launch(image, idle=NEVER)
    answer(vm)
    launched = time.perf_counter()
    vm.suspend()
    vm.wait("SUSPENDED")
    suspended = time.perf_counter()
    answer(vm)
    resumed = time.perf_counter()
    vm.terminate()
    vm.wait("TERMINATED")
    return tuple(ms * 1000 for ms in (launched - began, suspended - launched, resumed - suspended))


def answer(vm):
    got = vm.endpoint.get("/")
    if got.status != 200:
        raise RuntimeError(f"{vm.id} answered {got.status}")


def clone_pss_mib(cloud, image):
    """Proportional set size of each clone, all of them running: pages that they share count in parts."""
    vms = [cloud.launch(image, idle=NEVER) for _ in range(CLONES)]
    for vm in vms:
        answer(vm)
    pids = cloud.daemon.machine_pids()
    sizes = [pss_mib(pids[vm.id]) for vm in vms]
    for vm in vms:
        vm.terminate()
    return sizes


def pss_mib(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        with contextlib.suppress(ValueError):
            name, kib, _ = line.split()
            if name == "Pss:":
                return int(kib) / 1024
    raise RuntimeError(f"process {pid} has no PSS")


def percentiles(values):
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{p}": round(cuts[p - 1], 1) for p in PERCENTILES}


def show(result):
    print(f"\n{'':32}{'p50':>10}{'p95':>10}{'p99':>10}")
    rows = [
        ("launch to first answer", "launch", "ms"), ("suspend", "suspend", "ms"),
        ("resume to first answer", "resume", "ms"), ("cold boot", "cold_boot", "ms"),
        (f"memory of 1 of {CLONES} clones", "pss_mib", "MiB (PSS)"),
    ]
    for title, name, unit in rows:
        print(f"{title:32}" + "".join(f"{result[name][f'p{p}']:10.1f}" for p in PERCENTILES) + f"  {unit}")
    print(f"\nA launch is {result['ratio_cold_boot_launch']} times, a resume {result['ratio_cold_boot_resume']} times "
          f"faster than a cold boot ({RUNS} runs).\nWritten to {RESULT}")


def say(text):
    print(f"bench: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
