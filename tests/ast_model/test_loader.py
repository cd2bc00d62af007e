import shutil
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.config import AugmentConfig
from ast_model.draws import NO_PARTNER, Draws, num_steps_of, plan_epoch, share_of_rank
from ast_model.loader import Batch, ClipReader, Collator, read_ahead, split_evenly
from pipeline.errors import CorruptError
from pipeline.shards import read_sidecar
from pipeline.snapshot import Snapshot, load_snapshot
from pipeline.storage import Store

NUM_FRAMES = 900
TRAIN_SPLITS = ("balanced_train", "unbalanced_train")


def make_collator(snapshot: Snapshot) -> Collator:
    rows = snapshot.rows_of(TRAIN_SPLITS)
    return Collator(ClipReader(snapshot), rows, snapshot.targets(rows), NUM_FRAMES)


@pytest.fixture
def collator(snapshot: Snapshot) -> Collator:
    return make_collator(snapshot)


@pytest.fixture(scope="module")
def fbanks(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """The fbank of each clip, by key, read with numpy alone."""
    found = {}
    for tar in snapshot.store.list("shards", ".tar"):
        for row in read_sidecar(snapshot.store, tar.replace(".tar", ".parquet")).to_pylist():
            content = snapshot.store.read_range(tar, row["fbank_offset"], row["fbank_bytes"])
            if row["status"] == "written":
                values = np.frombuffer(content, np.float16, offset=len(content) - row["num_frames"] * 256)
                found[row["key"]] = values.reshape(-1, 128)
    return found


def test_clips_are_cut_or_padded_with_0(snapshot: Snapshot, collator: Collator, fbanks: dict[str, np.ndarray]) -> None:
    batch = collator.plain(np.arange(len(collator.rows)))
    assert batch.clips.shape == (len(collator.rows), NUM_FRAMES, 128)
    assert batch.clips.dtype == torch.float16
    keys = [snapshot.index["key"][int(row)].as_py() for row in collator.rows]
    lengths = {len(fbanks[key]) for key in keys}
    assert min(lengths) < NUM_FRAMES < max(lengths)
    for key, found_TM, num_frames in zip(keys, batch.clips, batch.lengths_B, strict=True):
        expected_TM = np.zeros((NUM_FRAMES, 128), np.float16)
        expected_TM[: len(fbanks[key])] = fbanks[key][:NUM_FRAMES]
        np.testing.assert_array_equal(found_TM, expected_TM)
        assert num_frames == min(len(fbanks[key]), NUM_FRAMES)
    np.testing.assert_array_equal(batch.targets_BC, snapshot.targets(collator.rows).toarray())
    assert not len(batch.mixed)


def test_targets_are_mixed_and_a_shared_label_reaches_1(snapshot: Snapshot, collator: Collator) -> None:
    targets = snapshot.targets(collator.rows).toarray()
    shared = targets @ targets.T
    np.fill_diagonal(shared, 0)
    one, other = np.argwhere(shared > 0)[0]
    draws = Draws(
        clip=np.array([5, one, 7]),
        partner=np.array([NO_PARTNER, other, 2]),
        lam=np.array([1, 0.3, 0.6], np.float32),
        uniforms=np.zeros((3, 6), np.float32),
    )
    batch = collator.drawn(draws)
    expected = [targets[5], 0.3 * targets[one] + 0.7 * targets[other], 0.6 * targets[7] + 0.4 * targets[2]]
    np.testing.assert_allclose(batch.targets_BC, expected, atol=1e-6)
    assert batch.targets_BC[1].max() == pytest.approx(1)
    assert batch.mixed.tolist() == [1, 2]
    torch.testing.assert_close(batch.partners, collator.plain(np.array([other, 2])).clips)


def global_batches(collator: Collator, world_size: int, num_threads: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield each global batch of an epoch, put together from the ranks' parts."""
    weights = np.arange(1.0, len(collator.rows) + 1)
    draws = plan_epoch(weights, 40, "balanced", AugmentConfig(), ("snapshot", 0, 0))
    steps = range(num_steps_of(40, 6))
    ranks = [
        read_ahead(collator.drawn, [draws[share_of_rank(step, 6, rank, world_size)] for step in steps], num_threads)
        for rank in range(world_size)
    ]
    for parts in zip(*ranks, strict=True):
        fields = ("clips", "lengths_B", "targets_BC", "partners", "lam_Q", "uniforms")
        yield tuple(torch.cat([getattr(part, field) for part in parts]) for field in fields)


@pytest.mark.parametrize(("world_size", "num_threads"), [(1, 4), (2, 1), (2, 3), (4, 2)])
def test_any_number_of_ranks_and_threads_gives_the_same_global_batches(
    collator: Collator, world_size: int, num_threads: int
) -> None:
    expected = list(global_batches(collator, world_size=1, num_threads=1))
    assert len(expected) == 6
    found = list(global_batches(collator, world_size, num_threads))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_store_on_s3_gives_the_same_batches(snapshot: Snapshot, s3_store: Store, collator: Collator) -> None:
    for name in [*snapshot.store.list("shards"), *snapshot.store.list("snapshots"), "latest.json"]:
        s3_store.write_bytes(name, snapshot.store.read_bytes(name))
    on_s3 = make_collator(load_snapshot(s3_store)).plain(np.arange(4))
    torch.testing.assert_close(on_s3.clips, collator.plain(np.arange(4)).clips, rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["cut", "other", "missing"])
def test_a_shard_that_is_not_the_indexed_one_is_named(snapshot: Snapshot, tmp_path: Path, damage: str) -> None:
    shutil.copytree(snapshot.store.root, tmp_path / "copy")
    store = Store(str(tmp_path / "copy"))
    tars = [Path(store.path(name)) for name in store.list("shards/unbalanced_train", ".tar")]
    if damage == "cut":
        tars[0].write_bytes(tars[0].read_bytes()[:100_000])
    elif damage == "other":
        shutil.copy(tars[1], tars[0])
    else:
        tars[0].unlink()
    collator = make_collator(load_snapshot(store))
    with pytest.raises(CorruptError, match=tars[0].name):
        collator.plain(np.arange(len(collator.rows)))


def test_reading_ahead_is_bounded_and_ends_with_its_reader() -> None:
    batch = Batch("fbank", NUM_FRAMES, np.zeros(0), *[torch.zeros(0)] * 8)
    started: list[int] = []

    def make(work: int) -> Batch:
        started.append(work)
        return batch

    batches = read_ahead(make, range(1000), num_threads=2)
    next(batches)
    assert isinstance(batches, Generator)
    batches.close()
    assert len(started) <= 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_an_error_of_a_reader_thread_reaches_the_loop() -> None:
    def make(work: int) -> Batch:
        raise CorruptError(f"clip {work}")

    with pytest.raises(CorruptError, match="clip 0"):
        list(read_ahead(make, range(5), num_threads=3))


@pytest.mark.parametrize(("num_clips", "world_size"), [(10, 1), (10, 3), (7, 4), (2, 4)])
def test_an_evaluation_visits_each_clip_once_in_order(num_clips: int, world_size: int) -> None:
    parts = [split_evenly(num_clips, rank, world_size, batch_size=2) for rank in range(world_size)]
    visited = [clip for batches in parts for batch in batches for clip in batch]
    assert visited == list(range(num_clips))
    assert all(len(batch) <= 2 for batches in parts for batch in batches)
