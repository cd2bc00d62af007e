from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import PCA

from bench.duplicates import smooth_noise
from bench.near_duplicates import fbank_of, make_scenes, recorded_sounds, vary
from pipeline.measures.clip_measures import Measures
from pipeline.measures.fingerprint import MIN_CELLS, count_cells, distances, fingerprint_of, unpack
from pipeline.measures.table import write_measures
from pipeline.quality.duplicates import comparison, pairs
from pipeline.quality.duplicates.pair_table import MAX_DISTANCE, duplicate_groups
from pipeline.quality.duplicates.pairs import find_pairs
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store


def run_here(
    function: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any, num_items: int
) -> Iterator[tuple[Any, Any]]:
    for item in items:
        yield item, function(item, shared)


def search(fingerprints: Sequence[bytes | None], snapshot: Snapshot, tmp_path: Path) -> tuple[pa.Table, np.ndarray]:
    """Search clips with numbers as keys in two shards; return the pairs and the group of each clip."""
    store, keys = Store(str(tmp_path)), [f"{number:06}" for number in range(len(fingerprints))]
    shards = [Shard("train", str(number % 2)) for number in range(len(keys))]
    for place in range(2):
        measures = [Measures(fingerprint=each) for each in fingerprints[place::2]]
        write_measures(store, Shard("train", str(place)), keys[place::2], measures)
    columns = {"key": keys, "shard": pa.array([shard.tar for shard in shards]).dictionary_encode()}
    made = replace(snapshot, store=store, index=pa.table(columns))
    (tmp_path / "scratch").mkdir()
    found, num_missing = find_pairs(made, tmp_path / "scratch", run_here)
    assert num_missing == sum(each is None for each in fingerprints)
    return found, duplicate_groups(made, found)


def pack(fields: np.ndarray) -> list[bytes]:
    return [each.tobytes() for each in np.packbits(np.stack([fields > 0.5, fields < -0.5], axis=2), axis=-1)]


def test_copies_are_found_at_any_position_and_for_any_batch_size(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "PART_CLIPS", 70)
    monkeypatch.setattr(pairs, "CELL_CLIPS", 16)
    chance = np.random.default_rng(0)
    fields = smooth_noise(chance, 200)
    copies = np.roll(fields[:40], 9, axis=1) + 0.4 * smooth_noise(chance, 40)
    order = chance.permutation(240)
    fingerprints = pack(np.concatenate([fields, copies])[order])
    found, _ = search(fingerprints, snapshot, tmp_path)
    place_of = np.argsort(order)
    expected = {tuple(sorted((place_of[number], place_of[200 + number]))) for number in range(40)}
    assert {(int(row["first"]), int(row["second"])) for row in found.to_pylist()} == expected
    assert all(abs(row["offset_s"]) == pytest.approx(0.36) for row in found.to_pylist())
    assert all(0 < row["distance"] <= MAX_DISTANCE for row in found.to_pylist())


def test_many_copies_form_one_group_without_quadratic_comparisons(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def count_distances(first: np.ndarray, second: np.ndarray, shift: np.ndarray) -> np.ndarray:
        compared.append(len(first))
        return distances(first, second, shift)

    monkeypatch.setattr(comparison, "distances", count_distances)
    chance = np.random.default_rng(0)
    member = smooth_noise(chance, 1)
    crowd = pack(member + 0.3 * smooth_noise(chance, 600))
    fingerprints = crowd + 600 * pack(member) + pack(smooth_noise(chance, 100))
    found, groups = search(fingerprints, snapshot, tmp_path)
    assert len(set(groups[:1200])) == 1
    assert len(set(groups)) == 101
    assert len(found) == 1199
    assert set(found["first"].to_pylist()) == {"000000"}
    assert sum(compared) < 100 * len(fingerprints)


def test_silence_and_unmeasured_clips_have_no_duplicates(snapshot: Snapshot, tmp_path: Path) -> None:
    silent = fingerprint_of(np.full((998, 128), -15.94, np.float16))
    found, groups = search([silent, silent, b"", b"", None, None], snapshot, tmp_path)
    assert len(found) == 0
    assert len(set(groups)) == 6


@pytest.mark.slow
def test_clips_of_the_miniature_are_found_in_other_codecs(snapshot: Snapshot, tmp_path: Path) -> None:
    reader, chance = ClipReader(snapshot), np.random.default_rng(0)
    clips = [reader.read_audio(row).astype(np.float32) / 2**15 for row in range(8)]
    # Some are so steady that only the noise of the codec changes.
    check_planted(clips, snapshot, tmp_path, chance, min_recall=0.8)


@pytest.mark.slow
def test_recorded_sounds_are_found_in_other_codecs(snapshot: Snapshot, tmp_path: Path) -> None:
    sounds = recorded_sounds(max_per_package=6)
    if len(sounds) < 10:
        pytest.skip("no packages of recorded sounds are installed: see scripts/recorded_sounds.py")
    check_planted(make_scenes(sounds, 10), snapshot, tmp_path, np.random.default_rng(0), min_recall=0.9)


def check_planted(
    clips: list[np.ndarray], snapshot: Snapshot, tmp_path: Path, chance: np.random.Generator, min_recall: float
) -> None:
    """Check that most clips with enough content are paired with their copies, and no other clips are paired."""
    copies = [vary(clip_S, number, chance) for number, clip_S in enumerate(clips)]
    fingerprints = [fingerprint_of(fbank_of(clip_S)) for clip_S in [*clips, *copies]]
    has_content = (count_cells(unpack(fingerprints)) >= MIN_CELLS).reshape(2, -1).all(0)
    expected = {(number, len(clips) + number) for number in np.flatnonzero(has_content).tolist()}
    found, _ = search(fingerprints, snapshot, tmp_path)
    pairs_found = {(int(row["first"]), int(row["second"])) for row in found.to_pylist()}
    assert len(expected) >= len(clips) // 2
    assert pairs_found <= expected
    assert len(pairs_found) >= min_recall * len(expected)


def test_whitening_equals_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.isfinite(pairs.find_whitening(np.ones((1, 6), np.float32))).all()
    assert np.isfinite(pairs.find_whitening(np.empty((0, 6), np.float32))).all()
    monkeypatch.setattr(pairs, "WHITENING_RIDGE", 0)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5_000, 6)).astype(np.float32) @ rng.standard_normal((6, 6)).astype(np.float32)
    vectors = np.concatenate([vectors, -vectors])  # of mean 0, which scikit-learn subtracts
    ours, theirs = vectors @ pairs.find_whitening(vectors), PCA(whiten=True).fit_transform(vectors)
    np.testing.assert_allclose(ours[:50] @ ours[:50].T, theirs[:50] @ theirs[:50].T, atol=0.01)


def test_required_similarity_grows_with_the_number_of_clips() -> None:
    needed = [pairs.similarity_needed(num_clips) for num_clips in (0, 1_000, 2_000_000, 20_000_000)]
    assert needed == pytest.approx([0.5, 0.5, 0.6, 0.65])
