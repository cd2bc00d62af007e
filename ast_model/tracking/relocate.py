"""Addresses in a store's database, which follow the store when its folder is moved or copied.

MLflow records where artifacts lie as absolute paths. After a move they name a folder that is gone; after a copy they
name the original, into which new trainings would then write.
"""

import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from ast_model.tracking.tags import CHECKPOINT_TAG, NOTE_TAG, ROOT_TAG
from pipeline.errors import TrackingError

log = logging.getLogger(__name__)

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
"""In the root of a local store."""
LOCK_TIMEOUT_S = 30.0
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
"""Table, column that holds an address, and the rows that are meant."""


def rewrite_store_paths(root: Path) -> None:
    """Rewrite the addresses in the database of a local store if they name another folder than `root`.

    All of them change in one transaction, or none. Raises TrackingError if the database can't be written.
    """
    if not (root / DATABASE).is_file():
        return
    try:
        with closing(sqlite3.connect(root / DATABASE, timeout=LOCK_TIMEOUT_S)) as database:
            if not _former_roots(database, root):
                return  # without having locked anything: a training may be writing
            with database:
                database.execute("BEGIN IMMEDIATE")
                for former in _former_roots(database, root):  # asked again, since another process may have been first
                    _rewrite(database, str(former), str(root))
                    log.info("this store was moved or copied from %s; its MLflow database names %s now", former, root)
    except sqlite3.Error as error:
        raise TrackingError(
            f"expected to update the addresses in {root / DATABASE}, since the store was moved or copied, found:"
            f" {error}; make the file writable, and stop what else uses it"
        ) from error


def _former_roots(database: sqlite3.Connection, root: Path) -> list[Path]:
    """Return the roots, other than `root`, that the experiments' artifacts are recorded under."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return []  # a database that MLflow has not filled yet
    locations = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    paths = [Path(location) for (location,) in locations if location]
    roots = [path.parent for path in paths if path.is_absolute() and path.name == ARTIFACTS]
    return [former for former in roots if former != root and not _is_valid(former, root)]


def _is_valid(former: Path, root: Path) -> bool:
    """Whether a recorded root is right although it is not `root`."""
    if (former / DATABASE).exists():
        return (former / DATABASE).samefile(root / DATABASE)  # the same folder by another path
    return (former / ARTIFACTS).exists()  # a store that used this database, which MLFLOW_TRACKING_URI named


def _rewrite(database: sqlite3.Connection, former: str, root: str) -> None:
    for table, column, rows in ADDRESS_COLUMNS:
        # By length, because LIKE would read an _ or % in a folder's name as a wildcard.
        database.execute(
            f"UPDATE {table} SET {column} = :root || substr({column}, length(:former) + 1)"
            f" WHERE {rows} AND substr({column} || '/', 1, length(:former) + 1) = :former || '/'",
            {"former": former, "root": root},
        )
    # Within a dataset's JSON and a description's Markdown the address begins after a quote.
    database.execute(
        "UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?)",
        (f"{json.dumps(former)[:-1]}/", f"{json.dumps(root)[:-1]}/"),
    )
    database.execute(
        f"UPDATE tags SET value = replace(value, ?, ?) WHERE key = '{NOTE_TAG}'", (f"`{former}/", f"`{root}/")
    )
