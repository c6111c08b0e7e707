"""The wall clock jumps hours back and forth: nothing is lost or reordered, and nothing waits for it.

Only client timestamps and the log's sequence count. A small C library in the server's process shifts the
wall clock by what a file says; the monotonic clock stays as it is, as on a machine whose time is corrected.
"""

from __future__ import annotations

import os
import random
import secrets
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.killing import Ledger, Load
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serving import RunningServer

SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *offset;

__attribute__((constructor)) static void open_offset(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    void *area = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (area == MAP_FAILED) abort();
    offset = area;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
"""

HOUR = 3_600


class WallClock:
    """The wall clock of servers started with `environment`."""

    def __init__(self, directory: Path, compiler: str) -> None:
        source, library = directory / "clock.c", directory / "clock.so"
        source.write_text(SHIM)
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
        self._offset = directory / "clock.offset"
        self.jump(0)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._offset)}

    def jump(self, seconds: int) -> None:
        """Be so many seconds off from now on."""
        # Written in place: the servers have this file mapped.
        descriptor = os.open(self._offset, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, struct.pack("l", seconds), 0)
        finally:
            os.close(descriptor)


@pytest.fixture
def clock(tmp_path: Path, debian_tool: Callable[[str], str]) -> WallClock:
    return WallClock(tmp_path, debian_tool("cc"))


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def retrained_at(server: RunningServer) -> float:
    """Return what the server's wall clock shows."""
    server.post("/admin/retrain-index")
    return server.get("/admin/index-stats")["last_retrain"]["unix_seconds"]


def test_the_clock_of_the_server_jumps_indeed(clock: WallClock, tmp_path: Path) -> None:
    """Else the other tests here would show nothing. What is due by age is due all the same."""
    with start_server(tmp_path / "data", "--flush-interval-ms=1000", environment=clock.environment) as server:
        for hours in (-9, 30, 0):
            clock.jump(hours * HOUR)
            server.post("/insert", {"series_id": 1, "timestamp": hours, "value": 1})
            # The flush by age waits for a second, not for the clock to come back.
            wait_until(lambda: server.get("/admin/stats")["memtable_rows"] == 0)
            assert abs(retrained_at(server) - time.time() - hours * HOUR) < HOUR / 2


def test_a_jumping_clock_loses_and_reorders_nothing(clock: WallClock, tmp_path: Path) -> None:
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    chance = random.Random(seed)
    ledger = Ledger()
    options = ("--retrain-threshold=1000", "--flush-interval-ms=1000", "--sync-interval-ms=20")
    for life in range(3):
        with start_server(
            tmp_path / "data", *options[: 2 + life % 2], environment=clock.environment
        ) as server:
            rows = server.get("/query?format=columns")
            ledger.settle(
                rows["series_id"], rows["timestamp"], rows["value"], f"seed {seed}, before life {life}"
            )
            load = Load(server, ledger, chance)
            try:
                for _ in range(6):
                    clock.jump(chance.randint(-50 * HOUR, 50 * HOUR))
                    time.sleep(0.08)
            finally:
                if life % 2:
                    server.kill()
                load.stop()
        # The next server starts in the past of this one, or in its future.
        clock.jump(chance.choice([-1, 1]) * chance.randint(1, 1_000) * HOUR)
    with start_server(tmp_path / "data", environment=clock.environment) as server:
        rows = server.get("/query?format=columns")

    ledger.settle(rows["series_id"], rows["timestamp"], rows["value"], f"seed {seed}, at the end")
    assert ledger.counts["writes_acknowledged"] > 0
