"""Published scores → a teacher in the store: every format, and what is refused."""

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import sparse

from ast_model.config import CacheConfig
from ast_model.teachers.grade import grade_teacher
from ast_model.teachers.matching import match_ids
from ast_model.teachers.score_files import read_index
from ast_model.teachers.store import ScoreRows, Teachers, load_teacher, write_rows
from jobs.teachers import COMMAND_LINE
from pipeline.errors import ConfigError, MismatchError
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

Logits = np.ndarray


@pytest.fixture
def own(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    """The small store's snapshot in a store of the test's own."""
    root = tmp_path / "store"
    root.mkdir()
    for name in ("shards", "snapshots", "latest.json"):
        (root / name).symlink_to(snapshot.store.path(name))
    return load_snapshot(Store(str(root)))


@pytest.fixture
def logits(own: Snapshot) -> Logits:
    """(N, C) of a good teacher: high for a clip's labels, otherwise random."""
    targets = own.targets(np.arange(len(own.index))).toarray().astype(float)
    return (targets * 6 - 4 + np.random.default_rng(0).normal(0, 0.5, targets.shape)).astype(np.float32)


def ytids_of(snapshot: Snapshot) -> list[str]:
    return [key.rpartition("_")[0] for key in snapshot.index["key"].to_pylist()]


def write_pair(folder: Path, scores: np.ndarray, ids: list[str]) -> tuple[str, ...]:
    """Write EfficientAT's pair; return the flags for it."""
    np.save(folder / "scores.npy", np.ascontiguousarray(scores))
    (folder / "index.pkl").write_bytes(pickle.dumps({name: row for row, name in enumerate(ids)}))
    return "--scores", str(folder / "scores.npy"), "--index", str(folder / "index.pkl")


def run(own: Snapshot, *flags: str) -> int:
    return COMMAND_LINE.main(["import", "--root", own.store.root, "--name", "t", *flags])


def stored(own: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities of all clips, and which have none."""
    rows = np.arange(len(own.index))
    return Teachers(own, rows, ["t"]).open(CacheConfig()).read(rows)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def write_parquet(folder: Path, logits: Logits, ids: list[str]) -> tuple[str, ...]:
    pd.DataFrame({"id": pd.Categorical(ids), "scores": list(sigmoid(logits))}).to_parquet(folder / "scores.parquet")
    return "--scores", str(folder / "scores.parquet")


def write_hdf5(folder: Path, logits: Logits, ids: list[str]) -> tuple[str, ...]:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "scores.h5", "w") as file:
        file["audio_name"] = [f"Y{name}.wav".encode() for name in ids]
        file["logits"] = logits
    return "--scores", str(folder / "scores.h5")


def write_ced(folder: Path, logits: Logits, ids: list[str]) -> tuple[str, ...]:
    """Write all classes as CED writes the top 20, two epochs' worth."""
    h5py = pytest.importorskip("h5py")
    order = np.argsort(-logits, axis=1)
    for epoch in (1, 2):
        pd.DataFrame({"filename": [f"Y{name}.wav" for name in ids], "start": 0.0, "end": 10.0}).to_parquet(
            folder / f"logits_ep{epoch}_0.parquet"
        )
        with h5py.File(folder / f"logits_ep{epoch}_0.h5", "w") as file:
            file["topk_values"] = np.take_along_axis(sigmoid(logits), order, axis=1).astype(np.float16)
            file["topk_indexes"] = order.astype(np.int16)
            file["seeds"] = np.zeros(len(ids), np.int32)
    return "--scores", *(str(folder / f"logits_ep{epoch}_0.h5") for epoch in (1, 2))


@pytest.mark.parametrize("write", [write_pair, write_parquet, write_hdf5, write_ced])
def test_a_teacher_of_any_format_is_the_same(
    write: Callable[..., tuple[str, ...]], own: Snapshot, logits: Logits, tmp_path: Path
) -> None:
    assert run(own, *write(tmp_path, logits, ytids_of(own))) == 0
    probs, is_untaught = stored(own)
    np.testing.assert_allclose(probs, sigmoid(logits), atol=1e-3)
    assert not is_untaught.any()


def test_own_evaluations_are_matched_by_key_and_class(own: Snapshot, logits: Logits, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(len(own.labels))
    keys, mids = np.array(own.index["key"].to_pylist()), np.array(own.labels.mids)[order]
    half, flags = len(keys) // 2, ["--scores"]
    for number, rows in enumerate((slice(half), slice(half, None))):
        flags.append(str(tmp_path / f"{number}.npz"))
        np.savez(
            flags[-1], keys=keys[rows], mids=mids, scores=np.ascontiguousarray(sigmoid(logits[rows][:, order])), epoch=1
        )
    assert run(own, *flags) == 0
    np.testing.assert_allclose(stored(own)[0], sigmoid(logits), atol=1e-3)


@pytest.mark.slow
def test_a_remote_store_gives_the_scores_through_the_cache(
    own: Snapshot, logits: Logits, s3_store: Store, tmp_path: Path
) -> None:
    assert run(own, *write_parquet(tmp_path, logits, ytids_of(own))) == 0
    for name in own.store.list("teachers"):
        s3_store.write_bytes(name, own.store.read_bytes(name))
    remote, rows = dataclasses.replace(own, store=s3_store), np.arange(len(own.index))
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    probs, _ = Teachers(remote, rows, ["t"]).open(cache).read(rows)
    np.testing.assert_array_equal(probs, stored(own)[0])
    with pytest.raises(ConfigError, match=r"set --train\.cache\.folder"):
        Teachers(remote, rows, ["t"]).open(CacheConfig(folder=""))


def test_gaps_leading_ys_and_several_rows_of_a_clip(
    own: Snapshot, logits: Logits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ytids_of(own)
    kept = np.arange(len(ids)) % 3 > 0
    some = [f"Y{name}" if number % 2 else name for number, name in enumerate(np.array(ids)[kept].tolist())]
    scores = np.concatenate([logits[kept], logits[kept][:1] + 1, logits[:1]])
    again = some[0][1:] if len(some[0]) > len(ids[1]) else f"Y{some[0]}"
    assert run(own, *write_pair(tmp_path, scores, [*some, again, "elsewhere__"]), "--stated-map", "0.495") == 0
    probs, is_untaught = stored(own)
    np.testing.assert_array_equal(is_untaught, ~kept)
    expected = sigmoid(logits)
    first = np.flatnonzero(kept)[0]
    expected[first] = (expected[first] + sigmoid(logits[first] + 1)) / 2
    np.testing.assert_allclose(probs[kept], expected[kept], atol=1e-3)
    said = capsys.readouterr().out
    assert "logits" in said and "1 rows are of a clip that another row is of" in said and "publisher's 0.495" in said
    assert COMMAND_LINE.main(["list", "--root", own.store.root]) == 0
    assert "0.495" in capsys.readouterr().out


def test_ids_of_recordings_with_several_segments_need_their_start() -> None:
    keys = ["Yab_cdefghi_0", "abc-efghijk_30000", "abc-efghijk_90000", "own sound_0"]
    index = pa.table({"key": pa.chunked_array([keys])})
    ids = [
        "Yab_cdefghi",
        "YYab_cdefghi.wav",
        "folder/abc-efghijk.mp3",
        "Yabc-efghijk_90000",
        "own sound.flac",
        None,
        "Y",
    ]
    matches = match_ids(pa.chunked_array([ids]), cast(Snapshot, SimpleNamespace(index=index)))
    assert matches.rows.tolist() == [0, 0, -1, 2, 3, -1, -1]
    assert matches.num_ambiguous == 1


def test_an_index_that_is_shifted_is_refused_with_both_figures(
    own: Snapshot, logits: Logits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = write_pair(tmp_path, np.roll(logits, 1, axis=0), ytids_of(own))
    assert run(own, *shifted, "--stated-map", "0.9") == 1
    said = capsys.readouterr().err
    assert "found mAP 0." in said and "0.900 is stated" in said and "shifted" in said
    assert not own.store.exists("teachers/t/teacher.json")


def test_an_index_that_is_shifted_from_somewhere_on_is_refused_with_the_place(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    targets = (random.random((1000, 8)) < 0.1).astype(np.uint8)
    targets[:, 0] |= targets.sum(axis=1) == 0
    scores = (targets * 0.9 + random.random(targets.shape) * 0.1).astype(np.float32)
    whole = SimpleNamespace(targets=lambda clips: sparse.csr_array(targets[clips]))
    rows = np.arange(len(targets))
    for shifted, message in ((np.concatenate([scores[:700], scores[699:-1]]), "from its clip 7"), (scores, "")):
        clips = write_rows(tmp_path / "scores.npy", [shifted[:300], shifted[300:]], rows, targets.shape[1])
        with pytest.raises(MismatchError, match=message) if message else nullcontext():
            grade = grade_teacher(ScoreRows(tmp_path / "scores.npy"), clips, cast(Snapshot, whole), stated=0.5)
    assert grade.mAP > 0.9 and grade.num_clips == 1000


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder, n: (folder / "index.pkl").write_bytes(pickle.dumps({"a": Harmful()})), "posix.system"),
        (lambda folder, n: (folder / "index.pkl").write_bytes(pickle.dumps({"a": np.int64(1)})), "Write it as JSON"),
        (lambda folder, n: (folder / "index.pkl").write_bytes(pickle.dumps({"a": 0})[:9]), "damaged"),
        (lambda folder, n: (folder / "index.pkl").write_bytes(pickle.dumps(["a"])), "found a list"),
        (lambda folder, n: write_pair_index(folder, n - 1), "--allow-unnamed-rows"),
        (lambda folder, n: write_pair_index(folder, n + 1), r"1 name rows that"),
        (lambda folder, n: (folder / "index.pkl").write_text(json.dumps({str(i): 0 for i in range(n)})), "for row 0"),
        (lambda folder, n: truncate(folder / "scores.npy", 7), "cut short"),
        (lambda folder, n: truncate(folder / "scores.npy", -20), "cut short or damaged"),
        (lambda folder, n: np.save(folder / "scores.npy", np.array([[None] * 2])), "could run foreign code"),
        (lambda folder, n: save_with(folder, np.nan), "found nan in row 3, of '"),
        (lambda folder, n: np.save(folder / "scores.npy", np.zeros((n, 521), "f2")), "found 521: YAMNet's classes"),
        (lambda folder, n: np.save(folder / "scores.npy", np.zeros((n, 632), "f2")), "632: the whole ontology"),
        (lambda folder, n: np.save(folder / "scores.npy", -(np.load(folder / "scores.npy") ** 2)), "logarithms of"),
        (lambda folder, n: (folder / "scores.npy").write_text("version https://git-lfs.github.com"), "Git LFS"),
    ],
)
def test_bad_input_is_refused(
    spoil: Callable[[Path, int], object],
    message: str,
    own: Snapshot,
    logits: Logits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = write_pair(tmp_path, logits, ytids_of(own))
    spoil(tmp_path, len(logits))
    if message == "Git LFS":
        flags = flags[:2]
    assert run(own, *flags) != 0
    assert message in capsys.readouterr().err
    assert own.store.list("teachers") == []


def write_pair_index(folder: Path, count: int) -> None:
    (folder / "index.pkl").write_bytes(pickle.dumps({f"id{row}": row for row in range(count)}))


def truncate(file: Path, num_bytes: int) -> None:
    """Take bytes off the end, or leave only so many."""
    os.truncate(file, file.stat().st_size - num_bytes if num_bytes > 0 else -num_bytes)


def save_with(folder: Path, value: float) -> None:
    scores = np.load(folder / "scores.npy")
    scores[3, 2] = value
    np.save(folder / "scores.npy", scores)


def test_columns_of_other_classes_are_picked_by_their_mids(own: Snapshot, logits: Logits, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(len(own.labels))
    mids = [own.labels.mids[number] for number in order]
    rows = [*((mid, f"name {mid}") for mid in mids), ("/m/other", "Other")]
    lines = ["index,mid,display_name", *(f"{number},{mid},{name}" for number, (mid, name) in enumerate(rows))]
    (tmp_path / "columns.csv").write_text("\n".join(lines))
    more = np.concatenate([logits[:, order], logits[:, :1]], axis=1)
    flags = write_pair(tmp_path, more, ytids_of(own))
    assert run(own, *flags) == 1
    assert run(own, *flags, "--labels", str(tmp_path / "columns.csv")) == 0
    np.testing.assert_allclose(stored(own)[0], sigmoid(logits), atol=1e-3)
    assert load_teacher(own.store, "t", own.labels).found == "logits"


def test_a_pickle_of_protocols_without_frames_is_read(tmp_path: Path) -> None:
    for protocol in range(6):
        (tmp_path / "index.pkl").write_bytes(pickle.dumps({"a": 1, "b": 70000, "c": 2**33}, protocol))
        assert read_index(tmp_path / "index.pkl") == {"a": 1, "b": 70000, "c": 2**33}
