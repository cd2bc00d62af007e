"""The journal returns the clips that were stored, across processes and versions."""

from dataclasses import asdict
from pathlib import Path

from pipeline.measures.clip_measures import Measures
from pipeline.records import Reason, Segment
from pipeline.shards.format import FAILED, WRITTEN
from pipeline.shards.journal import ClipResult, Journal, partial_shards
from pipeline.store.layout import Shard
from pipeline.store.storage import Store

SEGMENT = Segment("-a_b-c_d-e1", 30_000, 40_000, ("/m/a", "/m/b"), "eval")
MEASURES = asdict(Measures(peak=0.1, codec="opus", channels=2, fingerprint=bytes(range(256))))
RESULTS = [
    ClipResult(SEGMENT, WRITTEN, 1, None, "short", "video.webm", bytes(range(256)), b"fLaC", MEASURES),
    ClipResult(SEGMENT, FAILED, 3, Reason.PRIVATE, "Private video", "youtube"),
]


def test_results_are_read_in_order_up_to_a_missing_part(tmp_path: Path) -> None:
    journal = Journal(Store(str(tmp_path)), "fingerprint", Shard("eval", "0123456789abcdef"))
    journal.append(0, RESULTS)
    journal.append(2, RESULTS[1:])  # without measures, so that the column has another type
    journal.append(4, RESULTS)
    found = list(journal.read())
    assert found == [*RESULTS, RESULTS[1]]
    assert found[1].reason is Reason.PRIVATE
    assert partial_shards(journal.store, "fingerprint") == [journal]
    assert partial_shards(journal.store, "another") == []
    journal.clear()
    assert list(journal.read()) == partial_shards(journal.store, "fingerprint") == []
