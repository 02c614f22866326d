"""The figures of the charts: differences between two looks at the server's Prometheus metrics."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import Metric

POINT = ("at", "requests", "request_ms", "commits", "commit_ms", "batch", "events")
"""A point of the charts: ms since the Unix epoch, requests/s, mean ms per request, commits/s, mean ms per commit,
mean commands per commit, events/s. None where nothing happened or the server does not say."""

_POINTS = 300

Point = tuple[float | None, ...]


class Figures:
    """The last points. Bounded."""

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=_POINTS)
        self._last: Mapping[str, float] = {}
        self._last_events = 0
        self._last_at = 0

    def look(self, now: int, families: Iterable[Metric], events: int) -> Point | None:
        """Add the point since the last look at `now`, in ms. The first look gives none."""
        sums = totals(families)
        before, at, seen = self._last, self._last_at, self._last_events
        self._last, self._last_at, self._last_events = sums, now, events
        if not at or now <= at:
            return None
        seconds = (now - at) / 1000
        point = (now, *_rates(before, sums, seconds), round((events - seen) / seconds, 2))
        self.points.append(point)
        return point


def totals(families: Iterable[Metric]) -> Mapping[str, float]:
    """Sums and counts of the histograms, over all their labels."""
    sums: dict[str, float] = defaultdict(float)
    for family in families:
        for sample in family.samples:
            if sample.name.endswith(("_sum", "_count")):
                sums[sample.name] += sample.value
    return sums


def _rates(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> Point:
    if not before or not after:
        return (None,) * 5

    def grown(name: str) -> float:
        # A server that was started again counts from zero.
        return max(0.0, after.get(name, 0.0) - before.get(name, 0.0))

    def rate(name: str) -> float | None:
        return round(grown(f"{name}_count") / seconds, 2) if f"{name}_count" in after else None

    def mean(name: str, factor: float) -> float | None:
        count = grown(f"{name}_count")
        return round(grown(f"{name}_sum") / count * factor, 3) if count else None

    return (
        rate("bbs_request_seconds"),
        mean("bbs_request_seconds", 1000),
        rate("bbs_commit_seconds"),
        mean("bbs_commit_seconds", 1000),
        mean("bbs_batch_commands", 1),
    )
