"""Make `prometheus-rule.yaml`, for the Prometheus operator, from `omendb.rules.yaml`.

python deploy/monitoring/make_prometheus_rule.py
"""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path(__file__).parent
RULES = DIRECTORY / "omendb.rules.yaml"
PROMETHEUS_RULE = DIRECTORY / "prometheus-rule.yaml"

HEAD = """\
# Made from omendb.rules.yaml by make_prometheus_rule.py: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: omendb
  labels:
    app: omendb
spec:
"""


def prometheus_rule(rules: str) -> str:
    """Return the groups of a rules file as a PrometheusRule: the same text, further in."""
    groups = rules[rules.index("groups:\n") :]
    lines = (f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))
    return HEAD + "".join(lines)


if __name__ == "__main__":
    PROMETHEUS_RULE.write_text(prometheus_rule(RULES.read_text()))
