from __future__ import annotations

import math
import socket
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from omendb import metrics
from omendb.metrics import Counter, Histogram, LabeledCounter, Metrics, RecentQuantile

if TYPE_CHECKING:
    from pathlib import Path


def samples(text: bytes) -> dict[str, float]:
    return {
        sample.name + "".join(f"{{{k}={v}}}" for k, v in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_names_are_those_of_the_dashboards() -> None:
    found = Metrics()
    found.add_gauges(metrics.memory_gauges(lambda: 0))

    names = {sample.partition("{")[0] for sample in samples(found.render())}

    assert {
        "omendb_query_duration_seconds_bucket",
        "omendb_query_duration_seconds_count",
        "omendb_query_duration_seconds_sum",
        "omendb_insert_duration_seconds_bucket",
        "omendb_inserts_total",
        "omendb_insert_failures_total",
        "omendb_query_failures_total",
        "omendb_insert_batch_size_bucket",
        "omendb_active_connections",
        "omendb_memory_usage_bytes",
        "omendb_memory_limit_bytes",
        "omendb_mapped_resident_bytes",
        "omendb_wal_fsync_duration_seconds_count",
        "omendb_commit_batch_size_count",
        "omendb_flush_duration_seconds_count",
        "omendb_compaction_duration_seconds_count",
        "omendb_retrain_duration_seconds_count",
        "omendb_gc_duration_seconds_count",
        "omendb_build_info",
        "process_cpu_seconds_total",
    } <= names


def test_request_buckets_resolve_a_tenth_of_a_millisecond_to_a_second() -> None:
    assert metrics.REQUEST_SECONDS[0] == 0.0001
    steps = np.array(metrics.REQUEST_SECONDS)
    below = steps[steps <= 1.0]
    assert below[-1] == 1.0
    assert (below[1:] / below[:-1]).max() <= 2.5 + 1e-9


def test_a_histogram_counts_values_up_to_its_bounds() -> None:
    histogram = Histogram("x_seconds", "Help.", (0.1, 1.0))
    for value in (0.0, 0.1, 0.10001, 1.0, 7.0):
        histogram.observe(value)

    (family,) = [histogram.family()]

    found = {(s.name, s.labels.get("le")): s.value for s in family.samples}
    assert found["x_seconds_bucket", "0.1"] == 2
    assert found["x_seconds_bucket", "1.0"] == 4
    assert found["x_seconds_bucket", "+Inf"] == found["x_seconds_count", None] == 5
    assert found["x_seconds_sum", None] == pytest.approx(8.20001)
    assert histogram.count == 5


def test_labels_have_a_count_for_each_combination() -> None:
    counter = LabeledCounter("x_total", "Help.", ("status", "code"))
    for labels in (("404", "not_found"), ("503", "overloaded"), ("404", "not_found")):
        counter.inc(*labels)

    found = {(s.labels["status"], s.labels["code"]): s.value for s in counter.family().samples}

    assert found == {("404", "not_found"): 2, ("503", "overloaded"): 1}


def test_a_recent_quantile_forgets_what_is_two_turns_old() -> None:
    now = [0.0]
    histogram = Histogram("x_seconds", "Help.", (0.1, 1.0, 10.0))
    recent = RecentQuantile(histogram, 0.95, 60.0, lambda: now[0])
    assert math.isnan(recent.value())

    for value in [0.05] * 95 + [5.0] * 5:
        histogram.observe(value)
    assert recent.value() == 0.1
    histogram.observe(5.0)
    assert recent.value() == 10.0
    now[0] = 61.0
    assert recent.value() == 10.0
    histogram.observe(0.5)
    now[0] = 122.0
    assert recent.value() == 1.0
    histogram.observe(50.0)
    assert recent.value() == math.inf
    now[0] = 200.0
    recent.value()
    now[0] = 300.0
    assert math.isnan(recent.value())


def test_threads_lose_no_counts() -> None:
    counter = Counter("x_total", "Help.")
    histogram = Histogram("x_rows", "Help.", (1.0, 10.0))

    def count() -> None:
        for _ in range(10_000):
            counter.inc(2)
            histogram.observe(5.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counter.value == 80_000
    assert histogram.count == 40_000


def test_two_stores_in_one_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()

    one.inserts_total.inc(7)

    assert samples(one.render())["omendb_inserts_total"] == 7
    assert samples(other.render())["omendb_inserts_total"] == 0


def test_gauges_are_asked_at_every_scrape() -> None:
    found = Metrics()
    values = iter([1.0, 2.0])
    found.add_gauges(lambda: [("omendb_segments", "Segments.", next(values))])

    assert samples(found.render())["omendb_segments"] == 1
    assert samples(found.render())["omendb_segments"] == 2


def test_gauges_that_fail_do_not_hide_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    found = Metrics()
    found.add_gauges(lambda: [("omendb_bad", "Bad.", 1 / 0)])
    found.add_gauges(lambda: [("omendb_good", "Good.", 1.0)])

    rendered = samples(found.render())

    assert "omendb_bad" not in rendered
    assert rendered["omendb_good"] == 1
    assert "ZeroDivisionError" in caplog.text


def test_connections_are_counted_by_local_port() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        found = Metrics()
        found.watch_port(port)
        assert samples(found.render())["omendb_active_connections"] == 0

        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            with accepted:
                assert metrics.established_connections(port) == 1
                assert samples(found.render())["omendb_active_connections"] == 1


TCP = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:0BB8 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0100007F:C350 0100007F:0BB8 01 00000000:00000000 00:00000000 00000000     0        0 3
   3: 0100007F:0BB8 0100007F:C351 06 00000000:00000000 00:00000000 00000000     0        0 0
"""
TCP6 = b"""\
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000001000000:0BB8 00000000000000000000000001000000:C350 01 00000000
"""


def test_only_established_connections_to_the_port_count(tmp_path: Path) -> None:
    net = tmp_path / "proc/self/net"
    net.mkdir(parents=True)
    (net / "tcp").write_bytes(TCP)
    assert metrics.established_connections(3000, tmp_path) == 1

    (net / "tcp6").write_bytes(TCP6)

    assert metrics.established_connections(3000, tmp_path) == 2
    assert metrics.established_connections(3001, tmp_path) == 0


def test_process_memory_follows_what_the_process_holds() -> None:
    before = metrics.process_memory()

    held = np.ones(50_000_000 // 8)

    assert metrics.process_memory().unreclaimable - before.unreclaimable > 40_000_000
    assert held.nbytes == 50_000_000
    assert before.mapped > 0


class TestMemoryLimit:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text("MemTotal:       16384 kB\nMemFree: 1 kB\n")
        return tmp_path

    def cgroup(self, root: Path, text: str, files: dict[str, str]) -> None:
        (root / "proc/self/cgroup").write_text(text)
        for name, content in files.items():
            path = root / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def test_the_setting_comes_first(self, root: Path) -> None:
        assert metrics.memory_limit_bytes(3, root) == 3 << 20

    def test_the_machine_when_there_is_no_cgroup(self, root: Path) -> None:
        assert metrics.memory_limit_bytes(0, root) == 16_384 << 10

    def test_version_2(self, root: Path) -> None:
        self.cgroup(root, "0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "5000\n"})

        assert metrics.memory_limit_bytes(0, root) == 5000

    def test_version_2_in_a_container(self, root: Path) -> None:
        # The path is the host's, and only the container's own group is mounted.
        self.cgroup(root, "0::/kubepods/pod1/c1\n", {"memory.max": "7000\n"})

        assert metrics.memory_limit_bytes(0, root) == 7000

    def test_version_1(self, root: Path) -> None:
        self.cgroup(
            root,
            "5:cpu,cpuacct:/x\n4:memory:/docker/c1\n",
            {"memory/docker/c1/memory.limit_in_bytes": "6000\n"},
        )

        assert metrics.memory_limit_bytes(0, root) == 6000

    def test_no_limit_of_version_1_is_the_machine(self, root: Path) -> None:
        self.cgroup(root, "4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"})

        assert metrics.memory_limit_bytes(0, root) == 16_384 << 10

    def test_here(self) -> None:
        assert metrics.memory_limit_bytes() > 1 << 20
