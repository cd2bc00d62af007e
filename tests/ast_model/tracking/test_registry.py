import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ast_model.tracking.registry import REGISTERED, find_champion, find_version
from pipeline.errors import TrackingError


def test_failing_registry_is_an_error_not_a_missing_champion(empty_database: Path, tmp_path: Path) -> None:
    database = Path(shutil.copy(empty_database, tmp_path))
    client = MlflowClient(f"sqlite:///{database}")
    assert find_champion(client) is None
    client.create_registered_model(REGISTERED)
    assert find_champion(client) is None
    with pytest.raises(TrackingError, match="found 'best'; existing versions: none"):
        find_version(client, "best")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TABLE registered_model_aliases")
    for look in (find_champion, partial(find_version, version="best")):
        with pytest.raises(TrackingError, match=r"(?s)sqlite:.*registered_model_aliases; the file is damaged"):
            look(client)
