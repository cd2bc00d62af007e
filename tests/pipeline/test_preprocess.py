import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError

from pipeline.cluster.tasks import run_tasks
from pipeline.config import FetchConfig, PreprocessConfig, RateLimitConfig
from pipeline.errors import ConfigError, InputError, LeaseError, SourceError, StoreError, WorkerError
from pipeline.metadata import load_metadata
from pipeline.miniature import Miniature
from pipeline.preprocess import preprocess
from pipeline.records import Failure, FailureCategory, Media, Reason, Segment
from pipeline.snapshots.build import build_snapshot
from pipeline.snapshots.snapshot import LATEST, Snapshot, load_snapshot
from pipeline.sources import FolderSource
from pipeline.store.layout import LEASES, lease
from pipeline.store.lock import hold_lease
from pipeline.store.storage import Store

# Functions for workers are defined inside the tests, because Ray pickles local functions by value and workers can't
# import this file.


@pytest.fixture
def config(miniature: Miniature, media_address: str) -> PreprocessConfig:
    return PreprocessConfig(
        metadata=str(miniature.metadata_folder),
        media=(media_address,),
        clips_per_shard=7,
        keep_audio=True,
        fetch=FetchConfig(deadline_s=1.0, backoff_s=0.01, num_threads=4),
    )


@pytest.mark.ray
def test_rerun_fetches_only_retryable_failures(
    ray: None, config: PreprocessConfig, snapshot: Snapshot, miniature: Miniature, tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    first, report = preprocess(config, store)
    assert (report.num_planned, report.errors) == (len(miniature.clips), {})
    assert report.num_written + report.failures.total() == report.num_planned
    # Ray's parallel tasks give the same snapshot as the fixture's sequential conversion.
    assert first.index.equals(snapshot.index)
    assert first.snapshot_id == snapshot.snapshot_id
    assert load_snapshot(store).snapshot_id == first.snapshot_id
    assert (
        store.read_bytes("metadata/eval_segments.csv") == (miniature.metadata_folder / "eval_segments.csv").read_bytes()
    )

    files = {name: Path(store.path(name)).stat().st_mtime_ns for name in store.list("shards")}
    once = dataclasses.replace(config.fetch, max_attempts=1)
    second, again = preprocess(dataclasses.replace(config, fetch=once), store)
    retried = {
        reason
        for reason in report.failures
        if reason.category in (FailureCategory.TRANSIENT, FailureCategory.THROTTLED)
    }
    assert again.num_planned == sum(report.failures[reason] for reason in retried)
    assert again.failures.keys() == retried
    assert second.snapshot_id == first.snapshot_id
    assert {name: Path(store.path(name)).stat().st_mtime_ns for name in files} == files


@pytest.mark.ray
def test_failing_shard_task_does_not_end_the_run(
    ray: None, config: PreprocessConfig, miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FolderSource(str(miniature.media_folder), config.fetch)

    class RaisingSource:
        """A source that runs out of memory for some segments."""

        def __init__(self, bad: set[str]):
            self.bad = bad

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            if segment.ytid in self.bad:
                raise MemoryError(f"no memory at {segment.ytid}")
            return folder.fetch(segment)

    store = Store(str(tmp_path))
    ytids = {clip.segment.ytid for clip in miniature.clips}
    monkeypatch.setattr("pipeline.preprocess.open_sources", lambda config: [RaisingSource(ytids)])
    with pytest.raises(StoreError, match=r"6 shards failed, so the run ends; of 32 clips, 0 .* memory at "):
        preprocess(config, store)

    bad = next(clip.segment.ytid for clip in miniature.clips if clip.segment.split == "balanced_train")
    monkeypatch.setattr("pipeline.preprocess.open_sources", lambda config: [RaisingSource({bad})])
    snapshot, report = preprocess(config, store)
    assert [str(error) for error in report.errors.values()] == [f"no memory at {bad}"]
    assert report.num_decided == report.num_planned - 6  # the one shard of the balanced split
    assert "balanced_train" not in snapshot.splits

    monkeypatch.setattr("pipeline.preprocess.open_sources", lambda config: [folder])
    snapshot, report = preprocess(config, store)
    assert report.errors == {}
    assert "balanced_train" in snapshot.splits


@pytest.mark.ray
def test_config_error_of_a_source_ends_the_run(
    ray: None, config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BehindAProxy:
        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            raise ConfigError("the proxy refuses the user or the password")

    monkeypatch.setattr("pipeline.preprocess.open_sources", lambda config: [BehindAProxy()])
    with pytest.raises(ConfigError, match=r"^the proxy refuses"):
        preprocess(dataclasses.replace(config, clips_per_shard=2), Store(str(tmp_path)))


@pytest.mark.ray
def test_task_of_a_killed_worker_is_retried(ray: None, tmp_path: Path) -> None:
    def work(item: int, folder: Path) -> int:
        mark = folder / f"{item}"
        if item == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    results = dict(run_tasks(work, range(5), tmp_path, max_in_flight=2))
    assert results == {item: item * item for item in range(5)}
    assert (tmp_path / "2").exists()


@pytest.mark.ray
def test_task_with_progress_survives_more_deaths_than_a_task_without(
    ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.tasks.DEATH_PAUSE_S", 0.01)

    def work(item: str, folder: Path) -> str:
        deaths = len(list(folder.glob(f"{item}-*")))
        if item == "stuck" or deaths < 6:
            (folder / f"{item}-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    def count_marks(item: str) -> int:
        return len(list(tmp_path.glob("advancing-*"))) if item == "advancing" else 0

    tasks = run_tasks(work, ["stuck", "advancing"], tmp_path, max_in_flight=2, progress_of=count_marks)
    results = dict(tasks)
    assert results["advancing"] == "advancing"
    assert isinstance(results["stuck"], WorkerError)
    assert "4 workers in a row died without progress" in str(results["stuck"])
    assert len(list(tmp_path.glob("stuck-*"))) == 4


@pytest.mark.ray
def test_task_killed_for_lack_of_memory_is_named(ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.tasks.STORE_PAUSE_S", 0.01)
    monkeypatch.setattr("pipeline.cluster.tasks._result_of", lambda ref: OutOfMemoryError("the node ran out of memory"))
    ((_, result),) = run_tasks(lambda item, shared: item, [1], None, max_in_flight=1)
    assert isinstance(result, WorkerError)
    assert "Ray killed the last worker because memory ran out" in str(result)


@pytest.mark.ray
def test_retries_are_counted_per_task(ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task has three attempts, so two failures of each of many tasks lose none."""
    monkeypatch.setattr("pipeline.cluster.tasks.STORE_PAUSE_S", 0.01)

    def work(item: list[int], folder: Path) -> int:
        (number,) = item
        for mark in (folder / f"{number}-1", folder / f"{number}-2"):
            if not mark.exists():
                mark.touch()
                raise StoreError(f"refused {mark.name}")
        return number

    items = ([number] for number in range(400))  # fresh lists, so that ids of collected items are reused
    results = [result for _, result in run_tasks(work, items, tmp_path, max_in_flight=8)]
    assert sorted(map(str, results)) == sorted(map(str, range(400)))


@pytest.mark.ray
def test_unreachable_source_ends_the_run_with_an_error_and_uses_no_attempts(
    ray: None, config: PreprocessConfig, miniature: Miniature, tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    config = dataclasses.replace(
        config, rate_limit=RateLimitConfig(outage_cooldown_s=6, max_idle_s=4), splits=("unbalanced_train",)
    )
    down = dataclasses.replace(config, media=("http://127.0.0.1:1/{ytid}.webm",))
    with pytest.raises(SourceError, match=r"http://127.0.0.1:1/.* did not answer for .*refused.* the same command"):
        preprocess(down, store)
    assert store.list("shards") == []
    snapshot, report = preprocess(config, store)
    assert (
        report.num_decided
        == report.num_planned
        == sum(clip.segment.split == "unbalanced_train" for clip in miniature.clips)
    )
    assert len(snapshot.index) == report.num_written > 0


def test_unknown_classes_are_rejected(config: PreprocessConfig, miniature: Miniature, tmp_path: Path) -> None:
    for file in miniature.metadata_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "eval_segments.csv"
    file.write_text(file.read_text().replace("/m/03kmc9", "/m/09x0r"))
    with pytest.raises(InputError, match=r"1 labels of the segments are not among the 15 classes.*: /m/09x0r"):
        preprocess(dataclasses.replace(config, metadata=str(tmp_path)), Store(str(tmp_path / "store")))


def test_segment_in_two_splits_is_rejected(config: PreprocessConfig, miniature: Miniature, tmp_path: Path) -> None:
    folder = shutil.copytree(miniature.metadata_folder, tmp_path / "metadata")
    rows = (folder / "eval_segments.csv").read_text().splitlines()
    with (folder / "balanced_train_segments.csv").open("a") as file:
        file.write(rows[-1] + "\n")
    with pytest.raises(InputError, match="each segment in one split, found 1 in several"):
        load_metadata(dataclasses.replace(config, metadata=str(folder)))


def test_unwritable_root_is_reported_before_missing_metadata(config: PreprocessConfig) -> None:
    with pytest.raises(StoreError, match="can't write /proc/nowhere/"):
        preprocess(dataclasses.replace(config, metadata="/nowhere"), Store("/proc/nowhere"))


@pytest.mark.ray
def test_run_on_s3_gives_the_same_digests(
    ray: None, config: PreprocessConfig, miniature: Miniature, s3_store: Store, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, splits=("eval",), media=(str(miniature.media_folder),))
    for clip in miniature.clips:
        if clip.segment.split == "eval" and clip.file_name:
            s3_store.write_bytes(f"media/{clip.file_name}", (miniature.media_folder / clip.file_name).read_bytes())
    for name in ("eval_segments.csv", "class_labels_indices.csv"):
        s3_store.write_bytes(f"csv/{name}", (miniature.metadata_folder / name).read_bytes())
    here, report = preprocess(config, Store(str(tmp_path)))
    config = dataclasses.replace(config, metadata=s3_store.url("csv"), media=(s3_store.url("media"),))
    there, report_there = preprocess(config, s3_store)
    assert there.snapshot_id == here.snapshot_id
    assert there.checksums == here.checksums
    assert (report_there.num_written, report_there.failures) == (report.num_written, report.failures)
    assert report.num_planned == report.num_decided
    assert s3_store.list("parts") == []
    assert preprocess(config, s3_store)[1].num_planned == 0


@pytest.mark.ray
def test_failing_store_ends_the_run_with_the_count_of_written_clips(
    ray: None, config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipeline.cluster.tasks.STORE_PAUSE_S", 0.05)
    store = Store(str(tmp_path))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "eval").write_bytes(b"no folder")
    config = dataclasses.replace(config, splits=("balanced_train", "eval"), clips_per_shard=2)
    with pytest.raises(StoreError, match=r"3 shards failed, so the run ends; of \d+ clips, \d+ were written"):
        preprocess(config, store)
    (tmp_path / "shards" / "eval").unlink()
    _, report = preprocess(config, store)
    assert report.errors == {}


@pytest.mark.ray
def test_permanently_throttled_run_ends_with_the_clips_it_has(
    ray: None, config: PreprocessConfig, miniature: Miniature, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class ThrottledAfterAWhile:
        """A source that throttles after ten clips, until the file `closed` is removed."""

        def __init__(self, folder: Path, source: FolderSource):
            self.folder = folder
            self.source = source

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            if (self.folder / "closed").exists() and len(list(self.folder.iterdir())) > 10:
                return Failure(Reason.BOT_CHECK, "Sign in to confirm you're not a bot")
            (self.folder / segment.key).touch()
            return self.source.fetch(segment)

    tickets = tmp_path / "tickets"
    tickets.mkdir()
    (tickets / "closed").touch()
    store = Store(str(tmp_path / "store"))
    config = dataclasses.replace(config, rate_limit=RateLimitConfig(cooldown_s=6, max_idle_s=3), max_in_flight=2)
    source = ThrottledAfterAWhile(tickets, FolderSource(str(miniature.media_folder), config.fetch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.preprocess.open_sources", lambda config: [source])
        first, report = preprocess(config, store)
        assert (report.is_complete, report.num_throttled > 0) == (False, True)
        assert "stopped: every address is throttled" in caplog.text
        assert 0 < report.num_decided < report.num_planned == len(miniature.clips)
        (tickets / "closed").unlink()
        second, report = preprocess(config, store)
    assert report.is_complete
    assert len(second.index) > len(first.index)
    assert sum(counts["planned"] for counts in second.manifest["split_counts"].values()) == len(miniature.clips)


def test_concurrent_run_is_rejected(config: PreprocessConfig, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with hold_lease(store), pytest.raises(LeaseError, match="is locked"):
        preprocess(config, store)


def take_over(store: Store) -> None:
    """Add a newer lease, as another host does once a frozen run's lease has expired."""
    name = store.list(LEASES)[-1]
    number = int(Path(name).stem) + 1
    store.write_json(lease(number), store.read_json(name) | {"host": "elsewhere", "token": "new"})


def test_run_without_its_lease_publishes_no_snapshot(
    config: PreprocessConfig, small_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_store.root, tmp_path / "copy")
    store = Store(str(tmp_path / "copy"))
    theirs = b'{"snapshot": "newer", "made_of": ""}'

    def build_after_a_pause(*arguments) -> Snapshot:
        take_over(store)
        store.write_bytes(LATEST, theirs)
        return build_snapshot(*arguments)

    monkeypatch.setattr("pipeline.preprocess.build_snapshot", build_after_a_pause)
    store.remove(LATEST)
    with pytest.raises(LeaseError, match=r"lost its lease .* to elsewhere"):
        preprocess(dataclasses.replace(config, retry=()), store)
    assert store.read_bytes(LATEST) == theirs


def test_run_without_its_lease_replaces_no_metadata(config: PreprocessConfig, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with hold_lease(store) as lease:
        take_over(store)
        with pytest.raises(LeaseError, match="lost its lease"):
            load_metadata(config, store, lease.check)
    assert store.list("metadata") == []


@pytest.mark.ray
def test_lost_lease_of_a_task_ends_the_run(
    ray: None, config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.lock.Holder.check", lambda holder: None)  # the driver is frozen

    class TakenOverSource:
        """A source that answers after another run took over."""

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            name = f"{root}/lease/00000002.json"
            if not Path(name).exists():
                shutil.copy(f"{root}/lease/00000001.json", name)
            return Failure(Reason.NOT_FOUND, "gone")

    root = str(tmp_path)
    monkeypatch.setattr("pipeline.preprocess.open_sources", lambda config: [TakenOverSource()])
    with pytest.raises(LeaseError, match="lost its lease"):
        preprocess(config, Store(root))
    assert Store(root).list("shards") == []
