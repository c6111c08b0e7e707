"""OmenDB against the databases that people use, on the same work, in one run: `make race`.

Starts each contestant on an empty directory with its documented production settings, one at a time, in
rounds (A B A B ...); compares every answer with the right one before it is timed; writes the result as JSON,
Markdown and a plot. A contestant that is missing or fails keeps its place in the table, with the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from perf.race import report
from perf.race.contestants import CONTESTANTS
from perf.race.measure import SHORT, Plan, Race, say

ROOT = Path(__file__).resolve().parents[2]


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.race",
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--short", action="store_true", help="a few thousand points and a second each, to see that it works"
    )
    parser.add_argument(
        "--contestants", help="some of " + ",".join(CONTESTANTS), default=",".join(CONTESTANTS)
    )
    parser.add_argument("--datasets", help="some of main,jitter,many,nab", default="main,jitter,many,nab")
    parser.add_argument("--rounds", type=int, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, help="of a workload of many requests, in each round")
    parser.add_argument("--minutes", type=float, help="no round of a data set begins later, except its first")
    parser.add_argument(
        "--output", type=Path, default=Path("build"), help="where race.json, race.md and race.svg go"
    )
    parser.add_argument("--directory", type=Path, help="where the contestants' directories are made")
    parser.add_argument(
        "--write", type=Path, nargs="*", default=[], help="documents whose marked parts are replaced"
    )
    parser.add_argument("--plot", type=Path, help="a further copy of the plot")
    options = parser.parse_args(arguments)
    for name, known in (("contestants", set(CONTESTANTS)), ("datasets", set(Plan().datasets))):
        if unknown := set(getattr(options, name).split(",")) - known:
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is not known")
    return options


def machine(module: str = "perf.race") -> dict[str, object]:
    """Describe what the figures are measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return {
        "machine": f"{model}, {os.cpu_count()} CPUs, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "commit": commit.stdout.strip() or "none",
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }


def main() -> None:
    options = parse_options()
    plan = SHORT if options.short else Plan()
    changes = {
        name: getattr(options, name)
        for name in ("rounds", "seconds", "minutes")
        if getattr(options, name) is not None
    }
    plan = replace(plan, **changes, datasets=tuple(options.datasets.split(",")))
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    head = machine()
    say(f"{head['machine']}; load {head['load_average']}")
    chosen = options.contestants.split(",")
    started = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="omendb-race-", dir=options.directory))
    try:
        race = Race(plan, [key for key in CONTESTANTS if key in chosen], root)
        try:
            race.run()
        except KeyboardInterrupt:
            say("interrupted: the tables hold what there is")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    found = {
        **head,
        "minutes": (time.monotonic() - started) / 60,
        "plan": asdict(plan),
        **asdict(race.results),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "race.json").write_text(json.dumps(found, indent=1) + "\n")
    text = report.markdown(found)
    (options.output / "race.md").write_text(text)
    if importlib.util.find_spec("matplotlib") is None:
        say("no plot: matplotlib is not installed")
    else:
        for place in (options.output / "race.svg", options.plot):
            if place is not None:
                report.plot(found, place)
    for document in options.write:
        say(f"{document}: {report.write_into(document, found)} parts written")
    print(text)


if __name__ == "__main__":
    main()
