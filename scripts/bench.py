"""Measures what a user waits for, and what a clone costs (`make bench`).

Each figure is of RUNS runs after one that does not count, with a client that is loaded: from the API call, or the
request, to the app's answer. Prints a table and writes target/bench.json.

usage: bench.py [--builds] [--only PART ...]

--builds also builds three examples, once cold and once from the cache: they install Debian packages, which takes
many minutes in software emulation. --only measures some parts (base, sizes, prefetch, ingress, builds) and keeps the
other figures that are there.
DORMOUSE_BENCH_CONFIG names a configuration file for the daemon, as for builds behind a proxy.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import bench_ingress
from harness.artifact import zip_files, zip_folder
from harness.cloud import Cloud
from harness.daemon import CACHE, PROJECT, TARGET, Daemon

HOME = CACHE / "bench"
RESULT = TARGET / "bench.json"
RUNS = int(os.environ.get("DORMOUSE_BENCH_RUNS", "20"))
COLD_BOOTS = int(os.environ.get("DORMOUSE_BENCH_COLD_BOOTS", "10"))
CLONES = 20
SIZES_MIB = (512, 1024, 2048, 4096, 8192)
# A launch of the largest size may take this many times that of the smallest.
SIZE_RATIO_MAX = 1.2
BUILT = ("nginx-static", "flask", "go-service")
BUILD_TIMEOUT_S = 3600
# What the app of the cold launches reads before it answers.
BALLAST_MIB = 64
NEVER = (600, 600, True)
PERCENTILES = (50, 95, 99)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--builds", action="store_true")
    arguments.add_argument("--only", nargs="+", choices=(*PARTS, *HOST_PARTS), metavar="PART")
    wanted = arguments.parse_args()
    parts = wanted.only or [part for part in (*PARTS, *HOST_PARTS) if part != "builds" or wanted.builds]
    result = with_daemon([part for part in parts if part in PARTS])
    result |= {part: HOST_PARTS[part]() for part in parts if part in HOST_PARTS}
    # The base figures stand at the top, as they always have.
    result = result.pop("base", {}) | result
    kept = json.loads(RESULT.read_text()) if wanted.only and RESULT.exists() else {}
    RESULT.write_text(json.dumps(kept | result, indent=2) + "\n")
    show(result)
    sizes = result.get("sizes")
    if sizes and sizes["ratio_largest_smallest"] > SIZE_RATIO_MAX:
        print(f"bench: a launch grows with the size of its memory by more than {SIZE_RATIO_MAX - 1:.0%}", file=sys.stderr)
        return 1
    return 0


def with_daemon(parts):
    """What these parts measure, on one daemon."""
    if not parts:
        return {}
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    daemon = Daemon(HOME / "data", HOME / "daemon.log", options=daemon_options())
    try:
        daemon.start()
        cloud = Cloud(daemon, daemon.environment())
        result = {part: PARTS[part](cloud) for part in parts}
        cloud.terminate_all()
        daemon.stop()
    except BaseException:
        if daemon.log.exists():
            print(daemon.tail(), file=sys.stderr)
        raise
    finally:
        daemon.sweep()
    return result


def daemon_options():
    """What is measured is the daemon: the limits of endpoints are off, unless the configuration has its own."""
    options = ["--config", str(HOME / "daemon.toml")]
    given = os.environ.get("DORMOUSE_BENCH_CONFIG")
    config = Path(given).read_text() if given else ""
    if "[limits]" not in config:
        config += '\n[limits]\nin_flight = "off"\nrequests_per_second = "off"\nbandwidth_mb_per_second = "off"\n'
    (HOME / "daemon.toml").write_text(config)
    if accel := os.environ.get("DORMOUSE_TEST_ACCEL"):
        options += ["--accel", accel]
    return options


def base(cloud):
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


def sizes(cloud):
    """Launch time by baseline memory. The sizes take turns, so that a slow moment of the host hits them all."""
    app = zip_folder(PROJECT / "examples/hello")
    images = {}
    for mib in SIZES_MIB:
        say(f"image of {mib} MiB")
        images[mib] = cloud.build_image(app, name=f"size-{mib}", memory_mib=mib)
    launches = {mib: [] for mib in SIZES_MIB}
    say(f"{RUNS} launches of each size")
    for run in range(RUNS + 1):
        for mib, image in images.items():
            took = launch_ms(cloud, image)
            if run:
                launches[mib].append(took)
    result = {"launch_ms": {mib: percentiles(took) for mib, took in launches.items()}}
    smallest, largest = (result["launch_ms"][mib]["p50"] for mib in (SIZES_MIB[0], SIZES_MIB[-1]))
    result["ratio_largest_smallest"] = round(largest / smallest, 2)
    return result


def prefetch(cloud):
    """Launch time when nothing of the image is in memory, with and without a working set to read ahead."""
    app = zip_folder(PROJECT / "tests/e2e/apps/hooks")
    images = {}
    for name, more in (("without", {}), ("with", {"validate": "ENABLED", "validateTimeoutInSeconds": 300})):
        hooks = {"port": 9000, "microvmImageHooks": {"ready": "ENABLED"} | more}
        variables = {"BALLAST_MIB": str(BALLAST_MIB)}
        images[name] = cloud.build_image(app, name=f"prefetch-{name}", hooks=hooks, environmentVariables=variables)
    say(f"{RUNS} cold launches with and without a working set, in turns")
    took = {name: [] for name in images}
    for _ in range(RUNS):
        for name, image in images.items():
            forget(cloud.daemon.data_dir / "builds" / cloud.build(image)["buildId"])
            took[name].append(launch_ms(cloud, image, "/ballast"))
    result = {name: percentiles(times) for name, times in took.items()}
    result["ratio_without_with"] = round(result["without"]["p50"] / result["with"]["p50"], 2)
    return result


def forget(folder):
    """Drops a snapshot's files from the host's memory; nothing maps them any more."""
    for name in ("memory", "disk.qcow2", "state"):
        with (folder / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def launch_ms(cloud, image, path="/"):
    """Milliseconds of one launch to the first answer."""
    began = time.perf_counter()
    vm = cloud.launch(image, idle=NEVER)
    answer(vm, path)
    took = (time.perf_counter() - began) * 1000
    vm.terminate()
    vm.wait("TERMINATED")
    return took


def builds(cloud):
    """Seconds that real Dockerfiles take to become images, from nothing and again unchanged."""
    result = {}
    for name in BUILT:
        app = zip_folder(PROJECT / "examples" / name)
        took = {}
        for kind in ("cold", "cached"):
            say(f"{kind} build of {name}")
            began = time.perf_counter()
            cloud.wait_for_image(cloud.create_image(app, name=f"{name}-{kind}"), timeout_s=BUILD_TIMEOUT_S)
            took[f"{kind}_s"] = round(time.perf_counter() - began, 1)
        result[name] = took
    return result


# In the order in which they are measured.
PARTS = {"base": base, "sizes": sizes, "prefetch": prefetch, "builds": builds}
# Parts that need no microVM.
HOST_PARTS = {"ingress": bench_ingress.ingress}


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


def answer(vm, path="/"):
    got = vm.endpoint.get(path)
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
    if "launch" in result:
        show_base(result)
    if sizes := result.get("sizes"):
        print(f"\n{'launch to first answer, by memory':36}{'p50':>10}{'p95':>10}{'p99':>10}")
        for mib, figures in sizes["launch_ms"].items():
            print(f"{mib:>8} MiB{'':24}" + "".join(f"{figures[f'p{p}']:10.1f}" for p in PERCENTILES) + "  ms")
        print(f"The largest takes {sizes['ratio_largest_smallest']} times as long as the smallest.")
    if prefetch := result.get("prefetch"):
        print(f"\nA launch that finds nothing in the host's memory takes {prefetch['with']['p50']} ms with a working set, "
              f"{prefetch['without']['p50']} ms without: {prefetch['ratio_without_with']} times as long.")
    if ingress := result.get("ingress"):
        bench_ingress.show(ingress)
    for name, took in result.get("builds", {}).items():
        print(f"build of {name:20} cold {took['cold_s']:8.1f} s, cached {took['cached_s']:8.1f} s")
    print(f"Written to {RESULT}")


def show_base(result):
    print(f"\n{'':32}{'p50':>10}{'p95':>10}{'p99':>10}")
    rows = [
        ("launch to first answer", "launch", "ms"), ("suspend", "suspend", "ms"),
        ("resume to first answer", "resume", "ms"), ("cold boot", "cold_boot", "ms"),
        (f"memory of 1 of {CLONES} clones", "pss_mib", "MiB (PSS)"),
    ]
    for title, name, unit in rows:
        print(f"{title:32}" + "".join(f"{result[name][f'p{p}']:10.1f}" for p in PERCENTILES) + f"  {unit}")
    print(f"\nA launch is {result['ratio_cold_boot_launch']} times, a resume {result['ratio_cold_boot_resume']} times "
          f"faster than a cold boot ({RUNS} runs).")


def say(text):
    print(f"bench: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
