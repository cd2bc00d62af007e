"""Import published scores in every format as a teacher, and reject invalid files."""

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
    """The shared snapshot in a new store, so that the test can write to it."""
    root = tmp_path / "store"
    root.mkdir()
    for name in ("shards", "snapshots", "latest.json"):
        (root / name).symlink_to(snapshot.store.path(name))
    return load_snapshot(Store(str(root)))


@pytest.fixture
def logits(own: Snapshot) -> Logits:
    """Logits (N, C) of a good teacher: high for a clip's labels, otherwise random."""
    targets = own.targets(np.arange(len(own.index))).toarray().astype(float)
    return (targets * 6 - 4 + np.random.default_rng(0).normal(0, 0.5, targets.shape)).astype(np.float32)


def ytids_of(snapshot: Snapshot) -> list[str]:
    return [key.rpartition("_")[0] for key in snapshot.index["key"].to_pylist()]


def write_pair(folder: Path, scores: np.ndarray, ids: list[str]) -> tuple[str, ...]:
    """Write scores and index in EfficientAT's format. Return the flags that name both files."""
    np.save(folder / "scores.npy", np.ascontiguousarray(scores))
    (folder / "index.pkl").write_bytes(pickle.dumps({name: row for row, name in enumerate(ids)}))
    return "--scores", str(folder / "scores.npy"), "--index", str(folder / "index.pkl")


def run(own: Snapshot, *flags: str) -> int:
    return COMMAND_LINE.main(["import", "--root", own.store.root, "--name", "t", *flags])


def stored(own: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    """Return the imported probabilities of all clips, and a mask of clips without scores."""
    rows = np.arange(len(own.index))
    return Teachers(own, rows, ["t"]).open(CacheConfig()).read(rows)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def write_parquet(folder: Path, logits: Logits, ids: list[str]) -> tuple[str, ...]:
    pd.DataFrame({"id": pd.Categorical(ids), "scores": list(sigmoid(logits))}).to_parquet(folder / "scores.parquet")
    return "--scores", str(folder / "scores.parquet")


@pytest.mark.parametrize("write", [write_pair, write_parquet])
def test_every_format_gives_the_same_probabilities(
    write: Callable[..., tuple[str, ...]], own: Snapshot, logits: Logits, tmp_path: Path
) -> None:
    assert run(own, *write(tmp_path, logits, ytids_of(own))) == 0
    probs, is_untaught = stored(own)
    np.testing.assert_allclose(probs, sigmoid(logits), atol=1e-3)
    assert not is_untaught.any()


def test_several_files_of_one_teacher_are_joined(own: Snapshot, logits: Logits, tmp_path: Path) -> None:
    """Each split has a file, with the store's keys as ids."""
    keys, half = own.index["key"].to_pylist(), len(logits) // 2
    flags = ["--scores"]
    for number, rows in enumerate((slice(half), slice(half, None))):
        flags.append(str(tmp_path / f"{number}.parquet"))
        pd.DataFrame({"key": keys[rows], "scores": list(sigmoid(logits[rows]))}).to_parquet(flags[-1])
    assert run(own, *flags) == 0
    np.testing.assert_allclose(stored(own)[0], sigmoid(logits), atol=1e-3)


@pytest.mark.slow
def test_remote_store_is_read_through_the_cache(own: Snapshot, logits: Logits, s3_store: Store, tmp_path: Path) -> None:
    assert run(own, *write_parquet(tmp_path, logits, ytids_of(own))) == 0
    for name in own.store.list("teachers"):
        s3_store.write_bytes(name, own.store.read_bytes(name))
    remote, rows = dataclasses.replace(own, store=s3_store), np.arange(len(own.index))
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    probs, _ = Teachers(remote, rows, ["t"]).open(cache).read(rows)
    np.testing.assert_array_equal(probs, stored(own)[0])
    with pytest.raises(ConfigError, match=r"set --train\.cache\.folder"):
        Teachers(remote, rows, ["t"]).open(CacheConfig(folder=""))


def test_missing_clips_leading_ys_and_repeated_rows(
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
    assert "logits" in said and "1 rows are further rows of a clip" in said and "publisher: 0.495" in said
    assert COMMAND_LINE.main(["list", "--root", own.store.root]) == 0
    assert "0.495" in capsys.readouterr().out


def test_ids_of_videos_with_several_segments_need_the_start() -> None:
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


def test_shifted_index_is_rejected_with_both_maps(
    own: Snapshot, logits: Logits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = write_pair(tmp_path, np.roll(logits, 1, axis=0), ytids_of(own))
    assert run(own, *shifted, "--stated-map", "0.9") == 1
    said = capsys.readouterr().err
    assert "found mAP 0." in said and "stated: 0.900" in said and "shifted" in said
    assert not own.store.exists("teachers/t/teacher.json")


def test_partly_shifted_index_is_rejected_with_its_position(tmp_path: Path) -> None:
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
        (lambda folder, n: (folder / "index.pkl").write_bytes(pickle.dumps({"a": np.int64(1)})), "convert it to JSON"),
        (lambda folder, n: (folder / "index.pkl").write_bytes(pickle.dumps({"a": 0})[:9]), "damaged"),
        (lambda folder, n: (folder / "index.pkl").write_bytes(pickle.dumps(["a"])), "found a list"),
        (lambda folder, n: write_pair_index(folder, n - 1), "--allow-unnamed-rows"),
        (lambda folder, n: write_pair_index(folder, n + 1), "1 of them with row numbers beyond"),
        (lambda folder, n: (folder / "index.pkl").write_text(json.dumps({str(i): 0 for i in range(n)})), "for row 0"),
        (lambda folder, n: truncate(folder / "scores.npy", 7), "truncated"),
        (lambda folder, n: truncate(folder / "scores.npy", -20), "truncated or damaged"),
        (lambda folder, n: np.save(folder / "scores.npy", np.array([[None] * 2])), "could run foreign code"),
        (lambda folder, n: save_with(folder, np.nan), "found nan in row 3, clip '"),
        (lambda folder, n: np.save(folder / "scores.npy", np.zeros((n, 521), "f2")), "found 521: YAMNet's classes"),
        (lambda folder, n: np.save(folder / "scores.npy", np.zeros((n, 632), "f2")), "632: the whole ontology"),
        (lambda folder, n: np.save(folder / "scores.npy", -(np.load(folder / "scores.npy") ** 2)), "logarithms of"),
        (lambda folder, n: (folder / "scores.npy").write_text("version https://git-lfs.github.com"), "Git LFS"),
    ],
)
def test_invalid_files_are_rejected(
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
    """Remove `num_bytes` from the end, or keep only `-num_bytes`."""
    os.truncate(file, file.stat().st_size - num_bytes if num_bytes > 0 else -num_bytes)


def save_with(folder: Path, value: float) -> None:
    scores = np.load(folder / "scores.npy")
    scores[3, 2] = value
    np.save(folder / "scores.npy", scores)


def test_columns_are_selected_by_mid(own: Snapshot, logits: Logits, tmp_path: Path) -> None:
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


def test_index_of_every_pickle_protocol_is_read(tmp_path: Path) -> None:
    for protocol in range(6):
        (tmp_path / "index.pkl").write_bytes(pickle.dumps({"a": 1, "b": 70000, "c": 2**33}, protocol))
        assert read_index(tmp_path / "index.pkl") == {"a": 1, "b": 70000, "c": 2**33}
