"""All preprocessing commands, each on a copy of the small store."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from ast_model.tracking.server import PREPROCESSING
from jobs.preprocess import COMMAND_LINE
from jobs.preprocessing.settings import VerifyCommand
from jobs.preprocessing.tracked import check_all_made
from pipeline.errors import StoreError
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.measures.clip_measures import Measures
from pipeline.measures.fingerprint import fingerprint_of
from pipeline.measures.table import read_shard_measures, write_measures
from pipeline.miniature import Miniature
from pipeline.preprocess import PreprocessReport
from pipeline.quality.duplicates.pair_table import load_duplicates
from pipeline.records import FailureCategory
from pipeline.shards.checksum import remedy
from pipeline.shards.format import read_sidecar
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store
from tests.pipeline.copies.layouts import write_tar


@pytest.fixture
def store(small_store: Store, miniature: Miniature, tmp_path: Path) -> Store:
    # Runs that other tests train in the shared store would keep its snapshots from being pruned.
    others = shutil.ignore_patterns(
        "empty", ".scratch", "runs", "mlflow.db*", "mlartifacts", "embeddings", "evaluations"
    )
    shutil.copytree(small_store.path(""), tmp_path / "store", ignore=others)
    shutil.copytree(miniature.metadata_folder, tmp_path / "store" / "metadata")
    return Store(str(tmp_path / "store"))


def flags(store: Store, miniature: Miniature, *more: str) -> list[str]:
    data = [
        "--metadata",
        str(miniature.metadata_folder),
        "--media",
        str(miniature.media_folder),
        "--keep-audio",
    ]
    return ["--root", store.root, *data, "--clips-per-shard", "7", *more]


def test_plan_and_status_count_retryable_segments_and_change_nothing(
    store: Store, miniature: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: Path(store.path(name)).stat().st_mtime_ns for name in store.list("")}
    names = store.list("shards", ".parquet")
    rows = [row for name in names for row in read_sidecar(store, name).to_pylist()]
    faults = [clip.fault.reason for clip in miniature.clips if clip.fault and clip.fault.reason]
    num_due = sum(reason.category in (FailureCategory.TRANSIENT, FailureCategory.THROTTLED) for reason in faults)
    num_transient = sum(reason.category is FailureCategory.TRANSIENT for reason in faults)
    # Each segment had one attempt, so with a limit of one attempt the transient failures are final.
    for num_left, limit in ((num_due, ()), (num_due - num_transient, ("--fetch.max-total-attempts", "1"))):
        assert COMMAND_LINE.main(["plan", *flags(store, miniature, *limit)]) == 0
        printed = capsys.readouterr().out
        assert f"{len(rows)} segments, {num_left} due in " in printed
        assert f"at most {num_left * 1.2:.1f} MB fetched" in printed
        assert COMMAND_LINE.main(["status", *flags(store, miniature, *limit)]) == 0
        printed = capsys.readouterr().out
        assert f"{num_left} of {len(rows)} segments are due in a rerun" in printed
        num_written = sum(row["status"] == "written" for row in rows)
        assert f"{num_written:>10,} 100.0%  http://127.0.0.1:" in printed
    table = [line.split() for line in printed.split("\n\n")[0].splitlines()[1:]]
    written = {line[0]: int(line[-1]) for line in table if line[-2] == "written"}
    for split in ("balanced_train", "unbalanced_train", "eval"):
        assert written[split] == sum(row["status"] == "written" for row in rows if row["split"] == split)
    failed = sum(int(line[-1]) for line in table if line[-2] != "written")
    assert failed == sum(row["status"] == "failed" for row in rows)
    assert {name: Path(store.path(name)).stat().st_mtime_ns for name in store.list("")} == before


def test_plan_of_a_copy_states_its_coverage_and_bytes(
    miniature: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(miniature.media_folder.iterdir())
    write_tar(tmp_path / "copy.tar", {file.name: file.read_bytes() for file in files[:20]})
    num_bytes = (tmp_path / "copy.tar").stat().st_size
    root = ["--root", str(tmp_path / "store"), "--metadata", str(miniature.metadata_folder)]
    assert COMMAND_LINE.main(["plan", *root, "--media", str(tmp_path / "copy.tar")]) == 0
    printed = capsys.readouterr().out
    covered = re.search(r"copy     covers about (.*) segments", printed)
    assert covered
    assert sum(int(count) for count in re.findall(r"(\d+) of", covered[1])) == 20
    assert "reads 1 of 1 containers" in printed
    num_segments = int(printed.split()[0])
    assert f"about {num_segments - 20} due clips are in none of the sources" in printed
    assert f"at most {num_bytes / 1e6:.1f} MB fetched" in printed
    assert not (tmp_path / "store").exists()


def test_status_of_an_empty_store_names_the_missing_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metadata").mkdir()
    assert COMMAND_LINE.main(["status", "--root", str(tmp_path)]) == 1
    assert "metadata/eval_segments.csv" in capsys.readouterr().err


def test_unwritten_shards_raise_an_error() -> None:
    check_all_made(PreprocessReport())
    with pytest.raises(StoreError, match=r"1 shards could not be written.*abc: no memory"):
        check_all_made(PreprocessReport(errors={"abc": MemoryError("no memory")}))


def test_remedy_for_a_damaged_shard_is_a_valid_command(store: Store, miniature: Miniature) -> None:
    found = re.search(r"`python jobs/preprocess\.py (.+)`", remedy(store))
    assert found
    command = COMMAND_LINE.parse(shlex.split(found[1].replace("…", str(miniature.media_folder))))
    assert isinstance(command, VerifyCommand)
    assert command.repair
    assert (command.root, command.data.media) == (store.root, (str(miniature.media_folder),))


@pytest.mark.ray
def test_verify_describes_damaged_shards_and_repairs_them(
    ray: None, store: Store, miniature: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND_LINE.main(["verify", *flags(store, miniature)]) == 0
    assert f"{len(store.list('shards', '.parquet'))} of" in capsys.readouterr().out
    flipped, gone, edited = (name for name in store.list("shards", ".tar")[:3])
    store.remove("quality")
    assert COMMAND_LINE.main(["verify", *flags(store, miniature)]) == 0
    num_with_clips = len(store.list("shards", ".tar"))
    assert f"{num_with_clips} shards lack measures" in capsys.readouterr().out
    for num_measured in (num_with_clips, 0):
        assert COMMAND_LINE.main(["measure", "--root", store.root]) == 0
        assert f"in {num_measured} of {num_with_clips} shards measured" in capsys.readouterr().out
    content = bytearray(store.read_bytes(flipped))
    content[2000] ^= 1
    store.write_bytes(flipped, bytes(content))
    store.remove(gone)
    sidecar = edited.replace(".tar", ".parquet")
    store.write_bytes(sidecar, store.read_bytes(sidecar)[:-100])
    assert COMMAND_LINE.main(["verify", *flags(store, miniature)]) == 1
    printed = capsys.readouterr()
    for message in (
        f"{flipped}: expected",
        f"{flipped}: 1 clips differ",
        f"{gone} is missing",
        f"{sidecar} is not a valid sidecar",
    ):
        assert message in printed.out.replace(store.root + "/", "")
    assert "3 shards" in printed.err
    assert COMMAND_LINE.main(["verify", "--root", store.root, "--repair"]) == 2
    assert "--media is not set" in capsys.readouterr().err
    assert store.exists(flipped)
    assert "lack measures" not in printed.out
    assert COMMAND_LINE.main(["verify", *flags(store, miniature, "--repair")]) == 0
    assert COMMAND_LINE.main(["verify", *flags(store, miniature)]) == 0


@pytest.mark.ray
def test_duplicates_lists_pairs_with_their_splits_and_searches_once(
    ray: None, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = load_snapshot(store)
    train, held_out = (np.flatnonzero(snapshot.splits == split)[0] for split in ("balanced_train", "eval"))
    keys = snapshot.index["key"].to_pylist()
    fbank_TM = np.repeat(np.random.default_rng(0).standard_normal((100, NUM_MEL_BINS)), 10, axis=0).astype(np.float16)
    for row in (train, held_out):
        shard = Shard.of(snapshot.index["shard"][int(row)].as_py())
        measured = read_shard_measures(store, shard)
        assert measured is not None
        of_shard = measured["key"].to_pylist()
        copy = Measures(fingerprint=fingerprint_of(fbank_TM))
        write_measures(store, shard, of_shard, [copy if key == keys[row] else Measures() for key in of_shard])
    for _ in range(2):
        assert COMMAND_LINE.main(["duplicates", "--root", store.root]) == 0
        printed = capsys.readouterr().out
        assert "1 training clips are near-identical to evaluation clips" in printed
        assert re.search(rf"{keys[train]} +{keys[held_out]} +0.00 +0.00 +balanced_train +eval", printed)
        shutil.rmtree(store.path("quality"), ignore_errors=True)  # a second search would find nothing
    pairs = load_duplicates(snapshot)
    assert pairs is not None
    assert {"first": keys[train], "second": keys[held_out], "distance": 0.0, "offset_s": 0.0} in pairs.to_pylist()


@pytest.mark.ray
def test_rerun_is_tracked_and_its_snapshots_are_listed_compared_and_pruned(
    ray: None, store: Store, miniature: Miniature, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{store.path('mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    old = load_snapshot(store)
    assert COMMAND_LINE.main(["run", *flags(store, miniature, "--retry", "transient", "permanent")]) == 0
    new = load_snapshot(store)
    assert len(new.index) > len(old.index)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(PREPROCESSING)
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["written"] == len(new.index) - len(old.index)
    assert run.data.metrics["attempted"] == run.data.metrics["written"] + sum(
        run.data.metrics[f"failed/{kind}"] for kind in FailureCategory
    )
    assert run.inputs
    assert run.inputs.dataset_inputs[0].dataset.digest == new.snapshot_id

    capsys.readouterr()
    assert COMMAND_LINE.main(["snapshots", "list", "--root", store.root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [old.snapshot_id, new.snapshot_id]
    assert "(latest)" in lines[1]
    assert COMMAND_LINE.main(["snapshots", "diff", "--root", store.root, "--old", old.snapshot_id]) == 0
    table = [line.rsplit(maxsplit=4)[1:] for line in capsys.readouterr().out.split("\n\n")[1].splitlines()[1:]]
    assert table
    assert all(int(before) + int(came) - int(went) == int(after) for before, came, went, after in table)
    assert sum(int(row[2]) for row in table) == 0

    store.write_json("runs/some-run/epoch-1/description.json", {"snapshot": old.snapshot_id})
    assert COMMAND_LINE.main(["snapshots", "prune", "--root", store.root]) == 0
    assert len(store.list("snapshots", "/manifest.json")) == 2
    store.remove("runs")
    assert COMMAND_LINE.main(["snapshots", "prune", "--root", store.root]) == 0
    assert [name.split("/")[1] for name in store.list("snapshots", "/manifest.json")] == [new.snapshot_id]
    assert json.loads(store.read_bytes("latest.json"))["snapshot"] == new.snapshot_id
