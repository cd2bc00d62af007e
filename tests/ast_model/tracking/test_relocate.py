"""Move and copy a store that holds a run, its artifacts and a registered model."""

import dataclasses
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import LoggedModelStatus

from ast_model.tracking.registry import download, find_version, register
from ast_model.tracking.run import start_run
from ast_model.tracking.server import connect
from ast_model.tracking.tags import CHECKPOINT_TAG, ROOT_TAG
from pipeline.errors import TrackingError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store


def log_run(root: Path, name: str, snapshot: Snapshot) -> str:
    """Log a run with a dataset, an artifact and a registered version. Return its id."""
    store = Store(str(root))
    run = start_run(store, name, {ROOT_TAG: store.root})
    run.log_data(dataclasses.replace(snapshot, store=store), "training")
    run.describe(f"checkpoints: `{store.url('runs')}/{name}`")
    files = root / "pictures"
    files.mkdir(exist_ok=True)
    (files / "picture.png").write_bytes(name.encode())
    run.log_files(files, "evaluations")
    tags = {CHECKPOINT_TAG: store.url(f"runs/{name}/checkpoints/epoch-0001")}
    experiment_id = run.client.get_run(run.run_id).info.experiment_id
    model = run.client.create_logged_model(experiment_id, "epoch-0001", run.run_id, tags)
    run.client.log_model_artifacts(model.model_id, str(files))
    model = run.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    register(run.client, run.run_id, model, tags)
    run.end("FINISHED")
    return run.run_id


def digests(folder: Path) -> dict[Path, str]:
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("old_is_kept", [True, False], ids=["copied", "moved"])
def test_moved_or_copied_store_works_at_its_new_path(
    old_is_kept: bool, store: Store, snapshot: Snapshot, tmp_path: Path
) -> None:
    old, new = Path(store.root), tmp_path / "new % place"
    run_id = log_run(old, "first", snapshot)
    shutil.copytree(old, new) if old_is_kept else old.rename(new)
    before = digests(old)

    client = connect(Store(str(new)))
    assert Path(client.download_artifacts(run_id, "evaluations/picture.png", str(tmp_path))).read_bytes() == b"first"
    download(client, find_version(client, "1"), tmp_path / "fetched")
    assert (tmp_path / "fetched/picture.png").read_bytes() == b"first"
    second = log_run(new, "second", snapshot)
    assert (new / f"mlartifacts/{second}/artifacts/evaluations/picture.png").read_bytes() == b"second"

    with closing(sqlite3.connect(new / "mlflow.db")) as database:
        dump = "\n".join(database.iterdump()).replace("''", "'")
    assert f"{new}/mlartifacts" in dump
    assert f"{old}/" not in dump and f"{json.dumps(str(old))[1:-1]}/" not in dump
    assert digests(old) == before


def test_link_to_a_store_does_not_change_its_database(store: Store, tmp_path: Path) -> None:
    start_run(store, "first", {}).end("FINISHED")
    before = digests(Path(store.root))
    (tmp_path / "link").symlink_to(store.root)
    connect(Store(str(tmp_path / "link")))
    assert digests(Path(store.root)) == before


def test_artifacts_of_another_store_that_uses_this_database_remain(
    store: Store, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store.path('mlflow.db')}")
        run_id = log_run(other, "first", snapshot)
    client = connect(store)
    assert Path(client.download_artifacts(run_id, "evaluations/picture.png", str(tmp_path))).read_bytes() == b"first"


def test_locked_database_is_named_after_a_move(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_run(store, "first", {}).end("FINISHED")
    new = tmp_path / "new"
    Path(store.root).rename(new)
    monkeypatch.setattr("ast_model.tracking.relocate.LOCK_TIMEOUT_S", 0.0)
    with closing(sqlite3.connect(new / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrackingError, match=r"expected to update the paths in .*found: database is locked"):
            connect(Store(str(new)))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100_000])


def overwrite(file: Path) -> None:
    file.write_bytes(b"not a database " * 1000)


def change_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"malformed; the file is damaged: restore a backup"),
        (overwrite, r"file is not a database; the file is damaged: restore a backup"),
        (change_version, r"another version of MLflow wrote it"),
    ],
)
def test_unusable_database_is_reported_with_its_cause(
    store: Store, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    # At a new path, because MLflow checks the schema of each address only once per process.
    file = tmp_path / spoil.__name__ / "mlflow.db"
    file.parent.mkdir()
    shutil.copy(store.path("mlflow.db"), file)
    spoil(file)
    with pytest.raises(TrackingError, match=message) as caught:
        connect(Store(str(file.parent)))
    assert "moved or copied" not in str(caught.value) and "[SQL" not in str(caught.value)


def test_locked_database_is_reported_as_locked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ast_model.tracking.relocate.LOCK_TIMEOUT_S", 0.0)
    with closing(sqlite3.connect(store.path("mlflow.db"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match=r"expected to read .*database is locked; another program is writing"):
            connect(store)
