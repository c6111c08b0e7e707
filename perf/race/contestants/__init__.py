"""The databases that take part."""

from __future__ import annotations

from perf.race.contestants.base import Contestant, HttpContestant, NotOfferedError
from perf.race.contestants.influx import InfluxDB
from perf.race.contestants.omen import LazyOmenDB, OmenDB, OtherOmenDB
from perf.race.contestants.prometheus import Prometheus
from perf.race.contestants.sql import ClickHouse, DuckDB, SqlContestant
from perf.race.contestants.victoria import NewerVictoriaMetrics, VictoriaMetrics

CONTESTANTS: dict[str, type[Contestant]] = {
    contestant.key: contestant
    for contestant in (
        OmenDB,
        VictoriaMetrics,
        OtherOmenDB,
        LazyOmenDB,
        NewerVictoriaMetrics,
        InfluxDB,
        Prometheus,
        DuckDB,
        ClickHouse,
    )
}
"""By key, OmenDB first: DuckDB reads its files."""

__all__ = [
    "CONTESTANTS",
    "Contestant",
    "DuckDB",
    "HttpContestant",
    "NotOfferedError",
    "OmenDB",
    "SqlContestant",
]
