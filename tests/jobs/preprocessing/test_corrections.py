"""Reruns after corrections of the CSV files."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.preprocess import COMMAND_LINE
from pipeline.miniature import Miniature
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

pytestmark = pytest.mark.ray
SPLITS = ("balanced_train", "unbalanced_train", "eval")


@pytest.fixture
def csv(miniature: Miniature, tmp_path: Path) -> Path:
    """A copy of the miniature's metadata, to edit."""
    return Path(shutil.copytree(miniature.metadata_folder, tmp_path / "csv"))


@pytest.fixture
def run(csv: Path, miniature: Miniature, tmp_path: Path) -> Callable[..., Snapshot]:
    """Function that preprocesses into one store and returns the latest snapshot."""
    root = str(tmp_path / "store")

    def run(*flags: str) -> Snapshot:
        data = ["--metadata", str(csv), "--media", str(miniature.media_folder), "--no-track", "--retry", "throttled"]
        assert COMMAND_LINE.main(["run", "--root", root, *data, *flags]) == 0
        return load_snapshot(Store(root))

    return run


def row_of(csv: Path, split: str, snapshot: Snapshot, number: int) -> str:
    """Return the CSV line of a clip in the snapshot."""
    rows = snapshot.rows_of((split,))
    ytid = snapshot.index["key"][int(rows[number])].as_py().rpartition("_")[0]
    return next(
        line for line in (csv / f"{split}_segments.csv").read_text().splitlines() if line.startswith(f"{ytid}, ")
    )


def edit(csv: Path, split: str, old: str, new: str) -> None:
    file = csv / f"{split}_segments.csv"
    text = re.sub(r"num_segs=\d+", "", file.read_text())
    assert old in text
    file.write_text(text.replace(old + "\n", new and new + "\n"))


def index_row(snapshot: Snapshot, line: str) -> dict:
    """Return the snapshot's row for a CSV line, with the labels' mids; empty without one."""
    ytid, start = line.split(", ")[:2]
    key = f"{ytid}_{round(float(start) * 1000)}"
    found = [row for row in snapshot.index.to_pylist() if row["key"] == key]
    for row in found:
        row["mids"] = {snapshot.labels.mids[index] for index in row["labels"]}
    return found[0] if found else {}


def test_rerun_applies_corrections_and_fetches_only_clips_with_a_new_end(
    ray: None, csv: Path, run: Callable[..., Snapshot], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run()
    assert run().snapshot_id == first.snapshot_id
    assert "changed since" not in capsys.readouterr().out
    relabelled, moved, shorter, gone = (row_of(csv, "unbalanced_train", first, number) for number in range(4))
    mid = first.labels.mids[3]
    edit(csv, "unbalanced_train", relabelled, re.sub('".*"', f'"{mid}"', relabelled))
    edit(csv, "unbalanced_train", moved, "")
    with (csv / "eval_segments.csv").open("a") as file:
        file.write(moved + "\n")
    ytid, start, _, labels = shorter.split(", ", 3)
    edit(csv, "unbalanced_train", shorter, f"{ytid}, {start}, {float(start) + 5:.3f}, {labels}")
    edit(csv, "unbalanced_train", gone, "")

    second = run()
    printed = capsys.readouterr().out
    assert "1 planned, 1 written, 0 failed" in printed
    assert (
        "changed since the previous snapshot: 1 relabelled, 1 moved to another split, 1 fetched again, 1 removed"
        in printed
    )
    assert index_row(second, relabelled)["mids"] == {mid}
    assert index_row(second, moved)["split"] == "eval"
    assert index_row(second, shorter)["num_frames"] < index_row(first, shorter)["num_frames"]
    assert index_row(second, gone) == {}
    root = second.store.root
    assert load_snapshot(second.store, first.snapshot_id).index.equals(first.index)

    assert COMMAND_LINE.main(["snapshots", "diff", "--root", root, "--old", first.snapshot_id]) == 0
    assert "1 relabelled, 1 moved to another split, 1 fetched again, 1 removed" in capsys.readouterr().out
    assert COMMAND_LINE.main(["verify", "--root", root]) == 0
    assert COMMAND_LINE.main(["status", "--root", root, "--retry", "throttled"]) == 0
    assert re.search(r"^0 of \d+ segments are due", capsys.readouterr().out, re.MULTILINE)


def test_splits_of_earlier_runs_stay_and_a_moved_clip_is_in_the_split_read_last(
    ray: None, csv: Path, run: Callable[..., Snapshot]
) -> None:
    run("--splits", "eval")
    first = run("--splits", "balanced_train")
    assert set(first.splits) == {"balanced_train", "eval"}
    moved = row_of(csv, "balanced_train", first, 0)
    with (csv / "eval_segments.csv").open("a") as file:
        file.write(moved + "\n")
    second = run("--splits", "eval")
    assert index_row(second, moved)["split"] == "eval"
    assert len(second.index) == len(first.index)
