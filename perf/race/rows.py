"""The rows of the table: what is measured, in which unit, and the ratio to reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    key : str
    title : str
    unit : str
        Of the value; ``1/s`` and ``rows/s`` are better when larger, everything else when smaller.
    target : float or None
        To reach: how many times better than VictoriaMetrics.
    limit : float or None
        To reach: the largest value allowed, whatever the others have.
    tail : str or None
        A percentile that must also be below VictoriaMetrics' one.
    by : str or None
        The contestant whose figure counts for the target; None for OmenDB as shipped.
    """

    key: str
    title: str
    unit: str
    target: float | None = None
    limit: float | None = None
    tail: str | None = None
    by: str | None = None

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")


MAIN = (
    Row("single", "one row per POST, 64 connections", "1/s", target=0.75, tail="p95_ms"),
    Row("single_lazy", "the same with `sync_interval_ms` > 0", "1/s", target=0.9),
    Row("bulk", "bulk text, 2 connections, batches of 10,000 rows", "rows/s", target=2.0),
    Row("range_100", "100-row range of one series, 32 connections", "1/s", target=3.0),
    Row("range_named", "100-row range by label, of what was just written as text", "1/s"),
    Row("range_1000", "1,000-row range, 32 connections", "1/s", target=3.5),
    Row("windows_one", "a series into 100 means, 32 connections", "1/s", target=4.0),
    Row("windows_all", "all points into 100 windows for each series, one request", "ms", target=4.0),
    Row("merged", "one mean per 1,000 s over all series", "ms", target=3.0),
    Row("windows_short", "every series, 10 windows of 100 s", "ms", target=5.0),
    Row("export_json", "all rows out, JSON", "ms", target=2.0),
    Row("export_arrow", "all rows out, Arrow (against their JSON)", "ms", target=8.0),
    Row("disk", "disk, settled (to reach: with compression)", "bytes/point", limit=2.0, by="omendb-other"),
    Row("memory", "memory that cannot be reclaimed (RssAnon), the largest seen", "MB", limit=250.0),
    Row("start", "start to first answer", "ms", limit=3000.0),
    Row("mixed", "100-row ranges while 500,000 rows/s come in: p95", "ms", target=1.0),
    Row("fair", "100-row ranges beside the heavy window query, 32 connections: p99", "ms", target=1.0),
)

OTHERS = {
    "jitter": (
        Row("bulk", "bulk text, 2 connections, batches of 10,000 rows", "rows/s"),
        Row("range_100", "100-row range of one series, 32 connections", "1/s"),
        Row("windows_one", "a series into 100 means, 32 connections", "1/s"),
        Row("windows_all", "all points into 100 windows for each series", "ms"),
        Row("disk", "disk, settled", "bytes/point"),
    ),
    "many": (
        Row("bulk", "bulk text, 2 connections, batches of 10,000 rows", "rows/s"),
        Row("range_100", "all rows of one series, 32 connections", "1/s"),
        Row("windows_all", "one mean for each series", "ms"),
        Row("merged", "one mean over all series", "ms"),
        Row("disk", "disk, settled", "bytes/point"),
        Row("memory", "memory that cannot be reclaimed (RssAnon), the largest seen", "MB"),
    ),
    "nab": (
        Row("range_100", "100-row range of one series, 32 connections", "1/s"),
        Row("windows_all", "means of days for each series", "ms"),
        Row("merged", "means of days over all series", "ms"),
        Row("disk", "disk, settled", "bytes/point"),
    ),
}

WRITES = frozenset({"single", "single_lazy", "bulk", "mixed", "range_named"})
"""Rows that are measured on a directory of their own, which begins empty in every round."""

DATASET_TITLES = {
    "main": "1,000 series, 10 s apart",
    "jitter": "the same, jittered timestamps, 5 % out of order",
    "many": "100,000 series of 100 points",
    "nab": "real series (Numenta Anomaly Benchmark)",
}


def rows_of(dataset: str) -> tuple[Row, ...]:
    """Return the rows that a data set has."""
    return MAIN if dataset == "main" else OTHERS[dataset]
