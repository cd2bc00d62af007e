import threading
import time
from pathlib import Path

import pytest

from pipeline.cluster.metrics import Gauges
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.miniature import Miniature
from pipeline.preprocess import preprocess
from pipeline.store.storage import Store
from tests.pipeline.cluster.metrics_endpoint import Samples, scrape, scrape_until


@pytest.mark.ray
def test_endpoint_shows_a_conversion_while_it_runs_and_agrees_with_its_report(
    ray: None, miniature: Miniature, media_address: str, tmp_path: Path
) -> None:
    fetch = FetchConfig(deadline_s=1.0, backoff_s=0.01, num_threads=4)
    config = PreprocessConfig(str(miniature.metadata_folder), (media_address,), clips_per_shard=7, fetch=fetch)
    before, during = scrape("status", "reason"), list[Samples]()
    watch = threading.Thread(
        target=lambda: during.append(
            scrape_until(lambda samples: samples["tasks", "convert_shard", "running"] > 0, "task", "state")
        )
    )
    watch.start()
    _, report = preprocess(config, Store(str(tmp_path)))
    watch.join()
    assert during[0]["tasks", "convert_shard", "running"] > 0

    def num_decided(samples: Samples) -> float:
        return sum(value for (name, *_), value in (samples - before).items() if name == "clips_total")

    samples = scrape_until(lambda samples: num_decided(samples) >= report.num_planned, "status", "reason")
    made = samples - before
    assert made["clips_total", "written", ""] == report.num_written
    for reason, count in report.failures.items():
        assert made["clips_total", "failed", str(reason)] == count
    assert num_decided(samples) == report.num_planned == samples["clips_planned", "", ""]
    assert made["shard_bytes_total", "", ""] == report.num_bytes
    assert made["shards_total", "made", ""] == len(Store(str(tmp_path)).list("shards", ".parquet"))
    assert (samples["addresses", "", ""], samples["throttled_requests", "", ""]) == (1, report.num_throttled)


@pytest.mark.ray
def test_gauges_stay_visible_longer_than_ray_keeps_them(ray: None) -> None:
    gauges = Gauges()
    gauges.set("lasting", 0.25, run="a")
    assert scrape_until(lambda samples: samples["lasting", "a"] > 0, "run")["lasting", "a"] == 0.25
    time.sleep(3)  # Ray forgets a gauge after two intervals of at least a second
    assert scrape("run")["lasting", "a"] == 0.25
