"""A store with a tracking database."""

from pathlib import Path

import pytest

from ast_model.tracking import delivery
from pipeline.store.storage import Store


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(delivery, "QUEUES", tmp_path / "queues")
    # The folder's name contains characters that are special in SQL, JSON and URLs.
    root = tmp_path / "a_store, 'é'"
    root.mkdir()
    (root / "mlflow.db").write_bytes(empty_database.read_bytes())
    return Store(str(root))
