"""The monitoring files of `deploy/monitoring`, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "omendb.rules.yaml"


def groups() -> list[dict[str, Any]]:
    """Return the groups of the rules file."""
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return found


def alerts() -> dict[str, dict[str, Any]]:
    """Return the alerts by name."""
    found = [rule for group in groups() for rule in group["rules"]]
    assert len({rule["alert"] for rule in found}) == len(found)
    return {rule["alert"]: rule for rule in found}


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    found: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard, without the rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
