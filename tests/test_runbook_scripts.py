"""The runbook's own test scripts, word for word except for the host, against a running server."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serving import RunningServer

RUNBOOK = Path(__file__).parent.parent / "docs" / "runbook.md"


def script(name: str, server: RunningServer) -> str:
    """Return the runbook's script `name`, with the load balancer's name replaced by the server's."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", RUNBOOK.read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if f"# {name}\n" in block]
    return found.replace("load-balancer:3000", f"127.0.0.1:{server.port}").replace(
        "load-balancer:9090", f"127.0.0.1:{server.metrics_port}"
    )


def run(text: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with bash; its exit code must be 0."""
    file = directory / "script.sh"
    file.write_text(text)
    done = subprocess.run(["bash", str(file)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_load_test_stores_a_thousand_points(
    server: RunningServer, tmp_path: Path, debian_tool: Callable[[str], str]
) -> None:
    debian_tool("curl")

    done = run(script("load_test.sh", server), tmp_path)

    assert done.stdout.count('{"inserted":1}') == 1000
    assert "Completed 1000 inserts" in done.stdout
    assert done.stdout.endswith("Load test completed\n")
    assert server.get("/admin/stats")["record_count"] == 1000
    answer = server.get("/query?format=columns")
    assert answer["timestamp"] == list(range(1_000_001, 1_001_001))
    assert answer["series_id"] == [1] * 1000
    assert all(0 <= value <= 32767 for value in answer["value"])


def test_benchmark_prints_its_figures(
    server: RunningServer, tmp_path: Path, debian_tool: Callable[[str], str]
) -> None:
    debian_tool("curl")

    done = run(script("benchmark.sh", server), tmp_path)

    assert done.stderr == ""
    assert re.search(r"^Insert latency: 0\.\d+s$", done.stdout, re.MULTILINE)
    assert re.search(r"^Query latency: 0\.\d+s$", done.stdout, re.MULTILINE)
    assert re.search(r"^Throughput: [1-9]\d* inserts/second$", done.stdout, re.MULTILINE)
    answer = server.get("/query?format=columns")
    assert answer["timestamp"] == [2_000_000, *range(3_000_001, 3_001_001)]
    assert answer["value"] == [42.0, *map(float, range(1, 1001))]
