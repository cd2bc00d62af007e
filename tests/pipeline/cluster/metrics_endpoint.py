"""Reads Ray's Prometheus endpoint."""

import time
from collections import Counter
from collections.abc import Callable

import ray
import requests
from prometheus_client.parser import text_string_to_metric_families

Samples = Counter[tuple[str, ...]]
"""Sums over processes, by metric and values of labels."""


def scrape(*labels: str) -> Samples:
    """Return our metrics of all nodes, by name and the values of `labels`."""
    sums: Samples = Counter()
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for family in text_string_to_metric_families(requests.get(address, timeout=10).text):
            for sample in family.samples:
                if sample.name.startswith("ray_audioset_"):
                    name = sample.name.removeprefix("ray_audioset_")
                    key = name, *(sample.labels.get(label, "") for label in labels)
                    sums[key] += sample.value  # pyright: ignore[reportArgumentType] (counts are floats)
    return sums


def scrape_until(is_complete: Callable[[Samples], bool], *labels: str, timeout_s: float = 60) -> Samples:
    """Scrape until the samples satisfy a condition. Ray sends metrics to the endpoint every second in tests."""
    deadline = time.monotonic() + timeout_s
    while True:
        samples = scrape(*labels)
        if is_complete(samples) or time.monotonic() > deadline:
            return samples
        time.sleep(0.2)
