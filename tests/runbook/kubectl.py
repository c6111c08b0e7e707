"""Stands in for ``kubectl`` on the machine of `tests.runbook.node`: one Deployment, whose pods are processes.

What the runbook asks for is done the way the real one does it: ``logs`` with a selector shows the last ten lines
of each pod, a patched ConfigMap reaches the process as the kubelet brings it, ``exec`` runs where the server
runs. Whatever else is asked for is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.configmap import ConfigMapMount
from tests.runbook.node import ROOT

CLUSTER = Path(os.environ["RUNBOOK_CLUSTER"])
NAMESPACE = "omendb-prod"
DEPLOYMENT = "deployment/prod-omendb"
CONFIG_MAP = "omendb-config"
CLAIM = "omendb-data"
LOG_LINES = 10  # of each pod, when a selector is given and no --tail
STOP_SECONDS = 60


class KubectlError(Exception):
    """What the real one would complain about."""


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CLUSTER / "state.json").read_text())
    return found


def save(state: dict[str, Any]) -> None:
    (CLUSTER / "state.json").write_text(json.dumps(state))


def pods() -> dict[str, int]:
    """Return the running pods: name and process."""
    found: dict[str, int] = {}
    for file in sorted((CLUSTER / "pods").glob("*.pid")):
        pid = int(file.read_text())
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state != "Z":
            found[file.stem] = pid
    return found


def check_namespace(options: argparse.Namespace) -> None:
    if options.namespace != NAMESPACE:
        raise KubectlError(f'namespaces "{options.namespace}" not found')


def check_selector(options: argparse.Namespace) -> None:
    if options.selector not in (None, "app=omendb"):
        raise KubectlError(f"No resources found in {options.namespace} namespace.")


def top(options: argparse.Namespace) -> None:
    check_selector(options)
    before = {name: _cpu_seconds(pid) for name, pid in pods().items()}
    time.sleep(0.3)
    if not options.no_headers:
        print(f"{'NAME':<24}{'CPU(cores)':<14}{'MEMORY(bytes)'}")
    for name, pid in pods().items():
        milli = max(1, round((_cpu_seconds(pid) - before[name]) / 0.3 * 1e3))
        status = Path(f"/proc/{pid}/status").read_text()
        kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        print(f"{name:<24}{f'{milli}m':<14}{kib // 1024}Mi")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def execute(options: argparse.Namespace) -> int:
    if options.resource != DEPLOYMENT:
        raise KubectlError(f'deployments.apps "{options.resource}" not found')
    return subprocess.call(options.command)


def logs(options: argparse.Namespace) -> None:
    check_selector(options)
    for name in pods():
        lines = (CLUSTER / "pods" / f"{name}.log").read_text().splitlines()
        for line in lines[-LOG_LINES:] if options.selector else lines:
            print(line)


def patch(options: argparse.Namespace) -> None:
    kind, _, name = options.resource.partition("/")
    name = name or options.name
    change = json.loads(options.patch)
    state = load()
    if (kind, name) == ("configmap", CONFIG_MAP):
        for key, value in change["data"].items():
            if not isinstance(value, str):
                raise KubectlError(f"ConfigMap in version v1 cannot be handled: data.{key} is no string")
            state["settings"][key] = value
        ConfigMapMount(CLUSTER / "config", state["settings"])
    elif (kind, name) in (("deployment", "prod-omendb"), ("pvc", CLAIM)):
        state["patches"].setdefault(kind, []).append(change)
    else:
        raise KubectlError(f'{kind} "{name}" not found')
    save(state)
    full = {"configmap": "configmap", "deployment": "deployment.apps", "pvc": "persistentvolumeclaim"}[kind]
    print(f"{full}/{name} patched")


def get(options: argparse.Namespace) -> None:
    if (options.resource, options.name, options.output) != ("configmap", CONFIG_MAP, "yaml"):
        raise KubectlError(f'{options.resource} "{options.name}" not found')
    print("apiVersion: v1\ndata:")
    for key, value in sorted(load()["settings"].items()):
        print(f"  {key}: {json.dumps(value)}")
    print(f"kind: ConfigMap\nmetadata:\n  name: {CONFIG_MAP}\n  namespace: {NAMESPACE}")


def describe(options: argparse.Namespace) -> None:
    if options.resource == "nodes":
        print("Name:               node-0\nAllocated resources:")
        print("  (Total limits may be over 100 percent, i.e., overcommitted.)")
        print(f"  {'Resource':<18}{'Requests':<14}{'Limits'}")
        for resource, request, limit in (("cpu", "2 (100%)", "0 (0%)"), ("memory", "8Gi (33%)", "8Gi (33%)")):
            print(f"  {resource:<18}{request:<14}{limit}")
        return
    check_selector(options)
    for name in pods():
        print(f"Name:             {name}\nNamespace:        {NAMESPACE}\nLabels:           app=omendb")
        print("Containers:\n  omendb:\n    Limits:\n      memory:  8Gi\n    Requests:\n      cpu:     2")
        print("      memory:  8Gi\n    Ready:     True")


def scale(options: argparse.Namespace) -> None:
    if options.resource != DEPLOYMENT:
        raise KubectlError(f'deployments.apps "{options.resource}" not found')
    try:
        wanted = int(options.replicas)
    except ValueError as error:
        raise KubectlError(
            f'invalid argument "{options.replicas}" for "--replicas" flag: strconv.ParseInt: parsing '
            f'"{options.replicas}": invalid syntax'
        ) from error
    running = pods()
    for number in range(wanted):
        if f"prod-omendb-{number}" not in running:
            _start(number)
    surplus = [pid for name, pid in running.items() if int(name.rpartition("-")[2]) >= wanted]
    for pid in surplus:
        os.kill(pid, signal.SIGTERM)
    give_up = time.monotonic() + STOP_SECONDS
    while set(surplus) & set(pods().values()):
        if time.monotonic() > give_up:
            raise KubectlError("a pod does not stop within its grace period")
        time.sleep(0.05)
    print("deployment.apps/prod-omendb scaled")


def _start(number: int) -> None:
    """Start a pod. All share the machine's network, so each has ports of its own."""
    place = CLUSTER / "pods" / f"prod-omendb-{number}"
    with place.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("omendb")),
                "serve",
                f"--port={3000 + number}",
                f"--metrics-port={9090 + number}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,
        )
    place.with_suffix(".pid").write_text(str(process.pid))


def parser() -> argparse.ArgumentParser:
    top_level = argparse.ArgumentParser(prog="kubectl")
    commands = top_level.add_subparsers(required=True)
    for name, call in {
        "top": top,
        "logs": logs,
        "patch": patch,
        "get": get,
        "describe": describe,
        "scale": scale,
    }.items():
        command = commands.add_parser(name)
        command.set_defaults(call=call)
        command.add_argument("-n", dest="namespace", default=NAMESPACE if name == "describe" else "default")
        command.add_argument("-l", dest="selector")
        if name != "logs":
            command.add_argument("resource")
        if name in ("patch", "get"):
            command.add_argument("name", nargs="?")
        command.add_argument("-p", dest="patch")
        command.add_argument("-o", dest="output")
        command.add_argument("--replicas")
        command.add_argument("--no-headers", action="store_true")
    run = commands.add_parser("exec")
    run.set_defaults(call=execute)
    run.add_argument("-n", dest="namespace", default="default")
    run.add_argument("resource")
    return top_level


def main() -> int:
    arguments = sys.argv[1:]
    command: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, command = arguments[:at], arguments[at + 1 :]
    options = parser().parse_args(arguments)
    options.command = command
    try:
        check_namespace(options)
        status = options.call(options)
    except KubectlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(status or 0)


if __name__ == "__main__":
    sys.exit(main())
