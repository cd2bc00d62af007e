import dataclasses
import os
import signal
from pathlib import Path

import pytest

from jobs.visit import Visit, convert_all, preprocess
from pipeline.cluster import run_tasks
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.convert import Conversion
from pipeline.errors import InputError, StoreError
from pipeline.miniature import Miniature
from pipeline.records import Failure, Kind, Media, Reason, Segment, ShardPlan
from pipeline.snapshot import Snapshot, load_snapshot
from pipeline.storage import Store

# What runs in workers is defined within the tests: Ray sends it whole, so workers need not find this file.


@pytest.fixture
def config(miniature: Miniature, media_address: str) -> PreprocessConfig:
    return PreprocessConfig(
        metadata=str(miniature.metadata_folder),
        media=media_address,
        clips_per_shard=7,
        keep_audio=True,
        fetch=FetchConfig(deadline_s=1.0, backoff_s=0.01, num_threads=4),
    )


@pytest.mark.ray
def test_a_second_run_visits_only_what_may_work_now(
    ray: None, config: PreprocessConfig, snapshot: Snapshot, miniature: Miniature, tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    first, visit = preprocess(config, store)
    assert (visit.num_planned, visit.errors) == (len(miniature.clips), {})
    assert visit.num_written + visit.failures.total() == visit.num_planned
    # Made by Ray's tasks, it is what was made one after the other.
    assert first.index.equals(snapshot.index)
    assert first.snapshot_id == snapshot.snapshot_id
    assert load_snapshot(store).snapshot_id == first.snapshot_id
    assert (
        store.read_bytes("metadata/eval_segments.csv") == (miniature.metadata_folder / "eval_segments.csv").read_bytes()
    )

    files = {name: Path(store.path(name)).stat().st_mtime_ns for name in store.list("shards")}
    once = dataclasses.replace(config.fetch, max_attempts=1)
    second, again = preprocess(dataclasses.replace(config, fetch=once), store)
    retried = {reason for reason in visit.failures if reason.kind in (Kind.TRANSIENT, Kind.THROTTLED)}
    assert again.num_planned == sum(visit.failures[reason] for reason in retried)
    assert again.failures.keys() == retried
    assert second.snapshot_id == first.snapshot_id
    assert {name: Path(store.path(name)).stat().st_mtime_ns for name in files} == files


@pytest.mark.ray
def test_a_shard_whose_task_fails_ends_no_run(
    ray: None, conversion: Conversion, config: PreprocessConfig, plans: list[ShardPlan], tmp_path: Path
) -> None:
    class RaisingSource:
        """Has a bug that one segment brings to light."""

        def __init__(self, bad: set[str]):
            self.bad = bad

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            if segment.ytid in self.bad:
                raise RuntimeError(f"a bug at {segment.ytid}")
            return Failure(Reason.REMOVED, "gone")

    bad = plans[1].segments[0].ytid
    here = dataclasses.replace(conversion, store=Store(str(tmp_path)), source=RaisingSource({bad}))
    visit = Visit(num_planned=sum(len(plan.segments) for plan in plans))
    convert_all(plans, here, config, visit, None)
    assert {shard: str(error) for shard, error in visit.errors.items()} == {plans[1].shard_id: f"a bug at {bad}"}
    num_others = sum(len(plan.segments) for plan in plans) - len(plans[1].segments)
    assert visit.failures == {Reason.REMOVED: num_others}
    assert len(here.store.list("shards", ".parquet")) == len(plans) - 1

    all_bad = dataclasses.replace(here, source=RaisingSource({plan.segments[0].ytid for plan in plans}))
    with pytest.raises(StoreError, match=f"1 shards could not be made.* 0 clips of 7 were written.*: a bug at {bad}"):
        convert_all(plans[1:2], all_bad, config, Visit(num_planned=7), None)


@pytest.mark.ray
def test_a_task_whose_worker_is_killed_is_done_again(ray: None, tmp_path: Path) -> None:
    def work(item: int, folder: Path) -> int:
        mark = folder / f"{item}"
        if item == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    results = dict(run_tasks(work, range(5), tmp_path, max_in_flight=2))
    assert results == {item: item * item for item in range(5)}
    assert (tmp_path / "2").exists()


def test_segments_of_other_classes_are_refused(config: PreprocessConfig, miniature: Miniature, tmp_path: Path) -> None:
    for file in miniature.metadata_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "eval_segments.csv"
    file.write_text(file.read_text().replace("/m/03kmc9", "/m/09x0r"))
    with pytest.raises(InputError, match=r"1 labels of the segments are not among the 15 classes.*: /m/09x0r"):
        preprocess(dataclasses.replace(config, metadata=str(tmp_path)), Store(str(tmp_path / "store")))


def test_a_root_that_cannot_be_written_is_said_first(config: PreprocessConfig) -> None:
    with pytest.raises(StoreError, match="can't write /proc/nowhere/"):
        preprocess(dataclasses.replace(config, metadata="/nowhere"), Store("/proc/nowhere"))
