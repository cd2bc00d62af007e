"""Stores with a tracking database."""

from pathlib import Path

import mlflow
import pytest

from ast_model.tracking import delivery
from pipeline.store.storage import Store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, whose making takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(delivery, "QUEUES", tmp_path / "queues")
    # What SQL, JSON and addresses give a meaning to may be in a folder's name.
    root = tmp_path / "a_store, 'é'"
    root.mkdir()
    (root / "mlflow.db").write_bytes(empty_database.read_bytes())
    return Store(str(root))
