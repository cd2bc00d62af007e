import shutil
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from ast_model.config import AugmentConfig, CacheConfig, Features
from ast_model.data.augment import mix
from ast_model.data.loader import Batch, BatchReader, open_reader, split_evenly, without_augmentation
from ast_model.data.sampling import (
    CROP,
    NO_PARTNER,
    NUM_UNIFORMS,
    PARTNER_CROP,
    Draws,
    group_by_shard,
    num_steps_of,
    plan_epoch,
    rank_slice,
)
from pipeline.ahead import map_ahead
from pipeline.errors import CorruptError
from pipeline.reading.cache import ShardCache
from pipeline.shards.format import read_sidecar
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

NUM_FRAMES = 900
SEED = ("snapshot", 0, 0)
WITHOUT_CACHE = CacheConfig(folder="")
TRAIN_SPLITS = ("balanced_train", "unbalanced_train")


def make_reader(snapshot: Snapshot, cache: CacheConfig = WITHOUT_CACHE, features: Features = "fbank") -> BatchReader:
    rows = snapshot.rows_of(TRAIN_SPLITS)
    return BatchReader(open_reader(snapshot, cache), rows, snapshot.targets(rows), NUM_FRAMES, features)


@pytest.fixture
def clips(snapshot: Snapshot) -> BatchReader:
    return make_reader(snapshot)


@pytest.fixture(scope="module")
def fbanks(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Fbanks by key, read with NumPy only."""
    found = {}
    for tar in snapshot.store.list("shards", ".tar"):
        for row in read_sidecar(snapshot.store, tar.replace(".tar", ".parquet")).to_pylist():
            content = snapshot.store.read_range(tar, row["fbank_offset"], row["fbank_bytes"])
            if row["status"] == "written":
                values = np.frombuffer(content, np.float16, offset=len(content) - row["num_frames"] * 256)
                found[row["key"]] = values.reshape(-1, 128)
    return found


def test_clips_are_cut_or_padded_with_0(snapshot: Snapshot, clips: BatchReader, fbanks: dict[str, np.ndarray]) -> None:
    batch = clips.read_clips(np.arange(len(clips.rows)))
    assert batch.clips.shape == (len(clips.rows), NUM_FRAMES, 128)
    assert batch.clips.dtype == torch.float16
    keys = [snapshot.index["key"][int(row)].as_py() for row in clips.rows]
    lengths = {len(fbanks[key]) for key in keys}
    assert min(lengths) < NUM_FRAMES < max(lengths)
    for key, found_TM, num_frames in zip(keys, batch.clips, batch.lengths_B, strict=True):
        expected_TM = np.zeros((NUM_FRAMES, 128), np.float16)
        expected_TM[: len(fbanks[key])] = fbanks[key][:NUM_FRAMES]
        np.testing.assert_array_equal(found_TM, expected_TM)
        assert num_frames == min(len(fbanks[key]), NUM_FRAMES)
    np.testing.assert_array_equal(batch.targets_BC, snapshot.targets(clips.rows).toarray())
    assert not len(batch.mixed)


def crop_draws(num_draws: int, crop: float, partner_crop: float) -> Draws:
    """Draw the first clips, each mixed with the next clip, all with the same crops."""
    uniforms = np.zeros((num_draws, NUM_UNIFORMS), np.float32)
    uniforms[:, CROP], uniforms[:, PARTNER_CROP] = crop, partner_crop
    clip = np.arange(num_draws)
    return Draws(clip, (clip + 1) % num_draws, np.full(num_draws, 0.5, np.float32), uniforms)


@pytest.mark.parametrize("features", ["fbank", "audio"])
def test_random_crop_is_a_full_segment_of_a_longer_clip(
    features: Features, snapshot: Snapshot, fbanks: dict[str, np.ndarray]
) -> None:
    whole, num_frames = make_reader(snapshot, features=features), 300
    clips = BatchReader(whole.reader, whole.rows, whole.targets, num_frames, features, random_crop=True)
    lengths = whole.reader.num_frames[whole.rows]
    assert lengths.min() > num_frames
    almost_1 = float(np.nextafter(np.float32(1), np.float32(0)))
    batch = clips.read_draws(crop_draws(len(whole.rows), almost_1, 0.5))
    last, middle = lengths - num_frames, (lengths - num_frames + 1) // 2
    for position, row in enumerate(whole.rows.tolist()):
        clip, partner = batch.clips[position].numpy(), batch.partners[position - 1].numpy()
        if features == "fbank":
            fbank_TM = fbanks[snapshot.index["key"][row].as_py()]
            np.testing.assert_array_equal(clip, fbank_TM[last[position] :])
            np.testing.assert_array_equal(partner, fbank_TM[middle[position] :][:num_frames])
        else:
            waveform = whole.reader.read_audio(row)
            np.testing.assert_array_equal(clip, waveform[160 * last[position] :][: 400 + 160 * (num_frames - 1)])
    without = BatchReader(whole.reader, whole.rows, whole.targets, num_frames, features)
    assert torch.equal(clips.read_clips(np.arange(3)).clips, without.read_clips(np.arange(3)).clips)


def test_targets_are_mixed_and_shared_labels_sum_to_1(snapshot: Snapshot, clips: BatchReader) -> None:
    targets = snapshot.targets(clips.rows).toarray()
    shared = targets @ targets.T
    np.fill_diagonal(shared, 0)
    one, other = np.argwhere(shared > 0)[0]
    draws = Draws(
        clip=np.array([5, one, 7]),
        partner=np.array([NO_PARTNER, other, 2]),
        mixup_lambda=np.array([1, 0.3, 0.6], np.float32),
        uniforms=np.zeros((3, 6), np.float32),
    )
    batch = clips.read_draws(draws)
    expected = [targets[5], 0.3 * targets[one] + 0.7 * targets[other], 0.6 * targets[7] + 0.4 * targets[2]]
    np.testing.assert_allclose(batch.targets_BC, expected, atol=1e-6)
    assert batch.targets_BC[1].max() == pytest.approx(1)
    assert batch.mixed.tolist() == [1, 2]
    torch.testing.assert_close(batch.partners, clips.read_clips(np.array([other, 2])).clips)


def global_batches(clips: BatchReader, world_size: int, num_threads: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the global batches of an epoch, assembled from the ranks' parts."""
    weights = np.arange(1.0, len(clips.rows) + 1)
    draws = plan_epoch(weights, 40, "balanced", AugmentConfig(), SEED)
    steps = range(num_steps_of(40, 6))
    ranks = [
        map_ahead(clips.read_draws, [draws[rank_slice(step, 6, rank, world_size)] for step in steps], num_threads)
        for rank in range(world_size)
    ]
    for parts in zip(*ranks, strict=True):
        fields = ("clips", "lengths_B", "targets_BC", "partners", "lambda_Q", "uniforms")
        yield tuple(torch.cat([getattr(part, field) for part in parts]) for field in fields)


@pytest.mark.parametrize(("world_size", "num_threads"), [(1, 4), (2, 1), (2, 3), (4, 2)])
def test_any_number_of_ranks_and_threads_gives_the_same_global_batches(
    clips: BatchReader, world_size: int, num_threads: int
) -> None:
    expected = list(global_batches(clips, world_size=1, num_threads=1))
    assert len(expected) == 6
    found = list(global_batches(clips, world_size, num_threads))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture
def on_s3(snapshot: Snapshot, s3_store: Store) -> Snapshot:
    for name in [*snapshot.store.list("shards"), *snapshot.store.list("snapshots"), "latest.json"]:
        s3_store.write_bytes(name, snapshot.store.read_bytes(name))
    return load_snapshot(s3_store)


def test_s3_store_gives_the_same_batches(on_s3: Snapshot, clips: BatchReader) -> None:
    found = make_reader(on_s3).read_clips(np.arange(4))
    torch.testing.assert_close(found.clips, clips.read_clips(np.arange(4)).clips, rtol=0, atol=0)


def bytes_in(cache: ShardCache) -> int:
    """Return the total size of a cache that threads are filling. The lock prevents changes meanwhile."""
    with cache._lock("room"):
        return sum(size for _, size, _ in cache._held(besides=cache.folder))


@pytest.mark.parametrize("num_shards_held", [2, 100])
@pytest.mark.parametrize("is_grouped", [False, True])
def test_cache_of_any_size_gives_the_same_batches(
    on_s3: Snapshot, clips: BatchReader, tmp_path: Path, num_shards_held: int, is_grouped: bool
) -> None:
    max_bytes = num_shards_held * max(checksum.num_bytes for checksum in on_s3.checksums.values())
    cached = make_reader(on_s3, CacheConfig(str(tmp_path / "cache"), max_bytes / 1e9, num_threads=2))
    prefetcher = cached.reader.prefetcher
    assert prefetcher is not None
    draws = plan_epoch(np.ones(len(clips.rows)), 40, "balanced", AugmentConfig(), SEED)
    if is_grouped:
        draws = group_by_shard(draws, clips.reader.shards_of(clips.rows), 40, SEED)
    batches = [draws[start : start + 5] for start in range(0, 40, 5)]
    cached.set_order(draws, is_grouped)
    for found, expected in zip(cached.prefetch(batches, 2), clips.prefetch(batches, 2), strict=True):
        torch.testing.assert_close(found.clips, expected.clips, rtol=0, atol=0)
        torch.testing.assert_close(found.partners, expected.partners, rtol=0, atol=0)
        assert bytes_in(prefetcher.cache) <= max_bytes
    assert list((tmp_path / "cache").glob("*.tar"))


def test_damaged_cached_shard_is_bypassed(on_s3: Snapshot, clips: BatchReader, tmp_path: Path) -> None:
    cached = make_reader(on_s3, CacheConfig(str(tmp_path / "cache"), 1.0, num_threads=1))
    cached.set_order(without_augmentation(np.arange(1)), is_grouped=False)
    cached.read_clips(np.arange(1))
    (file,) = (tmp_path / "cache").glob("*.tar")
    file.write_bytes(b"!" * file.stat().st_size)
    found = cached.read_clips(np.arange(1))
    torch.testing.assert_close(found.clips, clips.read_clips(np.arange(1)).clips, rtol=0, atol=0)
    assert not file.exists()


def test_failing_cache_is_bypassed(
    on_s3: Snapshot, clips: BatchReader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cached = make_reader(on_s3, CacheConfig(str(tmp_path / "cache"), 1.0, num_threads=1))
    shutil.rmtree(tmp_path / "cache")  # simulates a lost disk
    cached.set_order(without_augmentation(np.arange(4)), is_grouped=False)
    torch.testing.assert_close(
        cached.read_clips(np.arange(4)).clips, clips.read_clips(np.arange(4)).clips, rtol=0, atol=0
    )
    assert "without the cache" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "other", "missing"])
def test_error_names_a_shard_that_differs_from_the_index(snapshot: Snapshot, tmp_path: Path, damage: str) -> None:
    shutil.copytree(snapshot.store.root, tmp_path / "copy")
    store = Store(str(tmp_path / "copy"))
    tars = [Path(store.path(name)) for name in store.list("shards/unbalanced_train", ".tar")]
    if damage == "cut":
        tars[0].write_bytes(tars[0].read_bytes()[:100_000])
    elif damage == "other":
        shutil.copy(tars[1], tars[0])
    else:
        tars[0].unlink()
    clips = make_reader(load_snapshot(store))
    with pytest.raises(CorruptError, match=tars[0].name):
        clips.read_clips(np.arange(len(clips.rows)))


def test_prefetching_is_bounded_and_ends_with_its_reader() -> None:
    batch = Batch("fbank", NUM_FRAMES, np.zeros(0), *[torch.zeros(0)] * 8)
    started: list[int] = []

    def make(work: int) -> Batch:
        started.append(work)
        return batch

    batches = map_ahead(make, range(1000), num_threads=2)
    next(batches)
    assert isinstance(batches, Generator)
    batches.close()
    assert len(started) <= 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_errors_of_reader_threads_reach_the_loop() -> None:
    def make(work: int) -> Batch:
        raise CorruptError(f"clip {work}")

    with pytest.raises(CorruptError, match="clip 0"):
        list(map_ahead(make, range(5), num_threads=3))


@pytest.mark.parametrize(("num_clips", "world_size"), [(10, 1), (10, 3), (7, 4), (2, 4)])
def test_evaluation_reads_each_clip_once_in_order(num_clips: int, world_size: int) -> None:
    parts = [split_evenly(num_clips, rank, world_size, batch_size=2) for rank in range(world_size)]
    clips_read = [clip for batches in parts for batch in batches for clip in batch]
    assert clips_read == list(range(num_clips))
    assert all(len(batch) <= 2 for batches in parts for batch in batches)


def asts_fbank(
    waveform: torch.Tensor, partner: torch.Tensor | None, mixup_lambda: float, target_length: int
) -> torch.Tensor:
    """Reimplement `_wav2fbank` of AST's data loader: waveforms (1, S) → fbank (target_length, 128)."""
    mixed = waveform - waveform.mean()
    if partner is not None:
        partner = partner - partner.mean()
        aligned = torch.zeros_like(mixed)
        shorter = min(mixed.shape[1], partner.shape[1])
        aligned[:, :shorter] = partner[:, :shorter]
        mixed = mixup_lambda * mixed + (1 - mixup_lambda) * aligned
        mixed = mixed - mixed.mean()
    fbank_TM = kaldi.fbank(
        mixed,
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    return torch.nn.functional.pad(fbank_TM, (0, 0, 0, target_length - len(fbank_TM)))


@pytest.mark.parametrize("num_frames", [NUM_FRAMES, 1024])
def test_stored_audio_is_mixed_exactly_as_by_asts_loader(snapshot: Snapshot, num_frames: int) -> None:
    clips = make_reader(snapshot, features="waveform")
    clips.num_frames = num_frames
    by_length = np.argsort(clips.reader.num_frames[clips.rows], kind="stable")
    short, long, other_long = by_length[[0, -1, -2]]
    assert clips.reader.num_frames[clips.rows[[short, long]]].tolist() == [808, 998]
    clip = np.array([long, short, long, short, long])
    partner = np.array([short, long, other_long, NO_PARTNER, NO_PARTNER])
    mixup_lambda = np.random.default_rng(0).beta(10, 10, len(clip)).astype(np.float32)
    batch = clips.read_draws(Draws(clip, partner, mixup_lambda, np.zeros((len(clip), 6), np.float32)))
    found_BTM = mix(batch)
    assert found_BTM.shape == (len(clip), num_frames, 128)

    def waveform(position: int) -> torch.Tensor:
        return torch.from_numpy(clips.reader.read_audio(int(clips.rows[position])) / 32768).float()[None]

    for found_TM, one, other, share in zip(found_BTM, clip, partner, mixup_lambda, strict=True):
        mixed_in = None if other == NO_PARTNER else waveform(other)
        expected_TM = asts_fbank(waveform(one), mixed_in, float(share), 1024)[:num_frames]
        torch.testing.assert_close(found_TM, expected_TM, rtol=0, atol=5e-4)  # rounding of float32 near the floor


def test_stored_fbanks_and_stored_audio_give_the_same_features(snapshot: Snapshot) -> None:
    positions = np.arange(len(snapshot.rows_of(TRAIN_SPLITS)))
    stored, kept = (
        mix(make_reader(snapshot, features=features).read_clips(positions)) for features in ("fbank", "waveform")
    )
    difference = (stored - kept).abs()
    assert difference.median() < 0.004  # rounding to the store's float16
    torch.testing.assert_close(stored == 0, kept == 0)  # the same padding
