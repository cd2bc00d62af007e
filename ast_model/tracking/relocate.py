"""Rewrite the paths in a store's MLflow database after its folder was moved or copied.

MLflow records the location of artifacts as absolute paths. After a move they point to a missing folder. After a copy
they point to the original, and new runs would write into it.
"""

import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from ast_model.tracking.diagnosis import suggest_fix
from ast_model.tracking.tags import CHECKPOINT_TAG, NOTE_TAG, ROOT_TAG
from pipeline.errors import TrackingError
from pipeline.store.layout import MLFLOW_ARTIFACTS, MLFLOW_DATABASE

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 30.0
"""Longest wait for another process that writes to the database, for example a training run that ends."""
ADDRESS_COLUMNS = (
    ("experiments", "artifact_location", "TRUE"),
    ("runs", "artifact_uri", "TRUE"),
    ("logged_models", "artifact_location", "TRUE"),
    ("model_versions", "source", "TRUE"),
    ("model_versions", "storage_location", "TRUE"),
    ("tags", "value", f"key = '{ROOT_TAG}'"),
    ("logged_model_tags", "tag_value", f"tag_key = '{CHECKPOINT_TAG}'"),
    ("model_version_tags", "value", f"key = '{CHECKPOINT_TAG}'"),
)
"""Tables and columns that hold paths, with an SQL condition that selects their rows."""


def rewrite_store_paths(root: Path) -> None:
    """Rewrite the paths in the database of a local store if they name another folder than `root`.

    All paths change in a single transaction. Raises TrackingError if the database can't be read or written.
    """
    file = root / MLFLOW_DATABASE
    if not file.is_file():
        return
    purpose = f"expected to read {file}"
    try:
        with closing(sqlite3.connect(file, timeout=LOCK_TIMEOUT_S)) as database:
            if not _former_roots(database, root):
                return  # the usual case, without a lock: a training run may be writing
            purpose = f"expected to update the paths in {file}, because the store was moved or copied"
            with database:
                database.execute("BEGIN IMMEDIATE")
                for former in _former_roots(database, root):  # again, under the lock: another process may be faster
                    _rewrite(database, str(former), str(root))
                    log.info("updated the paths in the MLflow database: %s was moved or copied to %s", former, root)
    except sqlite3.Error as error:
        raise TrackingError(f"{purpose}, found: {error}; {suggest_fix(str(file), error)}") from error


def _former_roots(database: sqlite3.Connection, root: Path) -> list[Path]:
    """Return the outdated roots that the experiments' artifact locations name."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return []  # MLflow has not created its tables yet
    locations = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    paths = [Path(location) for (location,) in locations if location]
    roots = [path.parent for path in paths if path.is_absolute() and path.name == MLFLOW_ARTIFACTS]
    return [former for former in roots if former != root and not _is_valid(former, root)]


def _is_valid(former: Path, root: Path) -> bool:
    """Return True for a recorded root that differs from `root` but is correct."""
    if (former / MLFLOW_DATABASE).exists():
        return (former / MLFLOW_DATABASE).samefile(
            root / MLFLOW_DATABASE
        )  # another path to the same folder, such as a link
    return (former / MLFLOW_ARTIFACTS).exists()  # another store that uses this database through MLFLOW_TRACKING_URI


def _rewrite(database: sqlite3.Connection, former: str, root: str) -> None:
    for table, column, rows in ADDRESS_COLUMNS:
        # Compare prefixes by length, because LIKE would treat _ and % in a folder's name as wildcards.
        database.execute(
            f"UPDATE {table} SET {column} = :root || substr({column}, length(:former) + 1)"
            f" WHERE {rows} AND substr({column} || '/', 1, length(:former) + 1) = :former || '/'",
            {"former": former, "root": root},
        )
    # Inside a dataset's JSON and a description's Markdown, a path starts after a quote.
    database.execute(
        "UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?)",
        (f"{json.dumps(former)[:-1]}/", f"{json.dumps(root)[:-1]}/"),
    )
    database.execute(
        f"UPDATE tags SET value = replace(value, ?, ?) WHERE key = '{NOTE_TAG}'", (f"`{former}/", f"`{root}/")
    )
