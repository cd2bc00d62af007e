"""Publish metrics on Ray's Prometheus endpoints. docs/monitoring.md lists them, and deploy/grafana.json shows them.

The driver counts clips, bytes and shards, so the sums of these counters equal the run's report.
"""

import threading
import time
from functools import cache

from ray.util.metrics import Counter, Gauge

from pipeline.records import ShardReport
from pipeline.sources.rate_limit import LimiterStatus

PREFIX = "audioset_"
REFRESH_S = 1.0
GAUGES = {
    "clips_planned": "Clips that the run plans to decide",
    "tasks": "Ray tasks of a command by state",
    "addresses": "Addresses that requests to the source come from",
    "cooling_addresses": "Addresses that cool down",
    "throttled_requests": "Throttled requests of the run",
    "idle_s": "Seconds without an answer from the source",
}
"""Descriptions of the gauges. Training metrics have MLflow's names and no description."""


class Gauges:
    """Gauges of this process. They are sent again every second until the process ends.

    Ray exports a gauge once after each update and forgets it after two report intervals (20 s), but a shard may take
    hours.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()

    def set(self, name: str, value: float, **tags: str) -> None:
        with self._lock:
            if not self._values:
                threading.Thread(target=self._refresh, name="metrics", daemon=True).start()
            if name not in self._gauges:
                self._gauges[name] = Gauge(PREFIX + name, GAUGES.get(name, ""), tuple(tags))
            self._values[name, tuple(tags.items())] = value
            self._gauges[name].set(value, tags)

    def _refresh(self) -> None:
        while True:
            time.sleep(REFRESH_S)
            with self._lock:
                for (name, tags), value in self._values.items():
                    self._gauges[name].set(value, dict(tags))


gauges = Gauges()


@cache
def _counter(name: str, description: str, tags: tuple[str, ...] = ()) -> Counter:
    return Counter(PREFIX + name, description, tags)


def count_shard(report: ShardReport) -> None:
    """Count a finished shard with its bytes, and its clips by outcome."""
    split = report.shard.split
    clips = _counter("clips", "Decided clips; the reason is empty for written clips", ("split", "status", "reason"))
    if report.num_written:
        clips.inc(report.num_written, {"split": split, "status": "written", "reason": ""})
    for reason, count in report.failures.items():
        clips.inc(count, {"split": split, "status": "failed", "reason": str(reason)})
    if report.num_bytes:
        _counter("shard_bytes", "Bytes of new shards", ("split",)).inc(report.num_bytes, {"split": split})
    count_shards("made")


def count_shards(status: str) -> None:
    """Count a shard as `made` or `failed`."""
    _counter("shards", "Finished shard tasks", ("status",)).inc(1, {"status": status})


def show_tasks(name: str, num_running: int, num_waiting: int) -> None:
    """Publish the numbers of a run's submitted tasks and of tasks that wait for a retry or a cooldown."""
    gauges.set("tasks", num_running, task=name, state="running")
    gauges.set("tasks", num_waiting, task=name, state="waiting")


def show_limiter(status: LimiterStatus) -> None:
    """Publish the state of a run's addresses."""
    gauges.set("addresses", status.num_addresses)
    gauges.set("cooling_addresses", status.num_cooling)
    gauges.set("throttled_requests", status.num_throttled)
    gauges.set("idle_s", status.idle_s)
