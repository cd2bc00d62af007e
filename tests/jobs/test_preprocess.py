import dataclasses
import os
import signal
from pathlib import Path

import pytest

from jobs.visit import preprocess
from pipeline.cluster import run_tasks
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.errors import InputError, StoreError
from pipeline.miniature import Miniature
from pipeline.records import Failure, Kind, Media, Segment
from pipeline.snapshot import Snapshot, load_snapshot
from pipeline.sources import FolderSource
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
    ray: None, config: PreprocessConfig, miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FolderSource(str(miniature.media_folder), config.fetch)

    class RaisingSource:
        """Has a bug that some segments bring to light."""

        def __init__(self, bad: set[str]):
            self.bad = bad

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            if segment.ytid in self.bad:
                raise RuntimeError(f"a bug at {segment.ytid}")
            return folder.fetch(segment)

    store = Store(str(tmp_path))
    ytids = {clip.segment.ytid for clip in miniature.clips}
    monkeypatch.setattr("jobs.visit.open_source", lambda config: RaisingSource(ytids))
    with pytest.raises(StoreError, match=r"6 shards could not be made, so the run ends; 0 clips of 32 .* a bug at "):
        preprocess(config, store)

    bad = next(clip.segment.ytid for clip in miniature.clips if clip.segment.split == "balanced_train")
    monkeypatch.setattr("jobs.visit.open_source", lambda config: RaisingSource({bad}))
    snapshot, visit = preprocess(config, store)
    assert [str(error) for error in visit.errors.values()] == [f"a bug at {bad}"]
    assert visit.num_decided == visit.num_planned - 6  # the one shard of the balanced split
    assert "balanced_train" not in snapshot.splits

    monkeypatch.setattr("jobs.visit.open_source", lambda config: folder)
    snapshot, visit = preprocess(config, store)
    assert visit.errors == {}
    assert "balanced_train" in snapshot.splits


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
