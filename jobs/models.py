"""Models in the registry: list, compare, promote, fetch; and bring a finished run's to it.

python jobs/models.py list [--snapshot ID]
python jobs/models.py compare --version 3 --against champion
python jobs/models.py promote --version 3
python jobs/models.py fetch --version champion --to FOLDER
python jobs/models.py publish --run RUN
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from ast_model.tracking.comparison import find_run
from ast_model.tracking.lineage import describe_versions
from ast_model.tracking.publish import publish
from ast_model.tracking.registry import CHAMPION, difference, download, find_version, predictions_of, promote
from ast_model.tracking.run import tracked_run_of
from ast_model.tracking.server import check_server, open_client, tracking_uri
from jobs.launch.cli import resolve_root, run_job
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.storage import Store


@dataclass(frozen=True)
class Command:
    """Where the models are."""

    root: str = "data/demo"
    """Folder or s3:// address of the store; MLFLOW_TRACKING_URI names the server unless its own database is meant."""

    @property
    def store(self) -> Store:
        return Store(resolve_root(self.root))

    def client(self):
        uri = tracking_uri(self.store)
        check_server(uri)
        return open_client(uri)


@dataclass(frozen=True)
class List(Command):
    """Print all versions, newest first, with run, snapshot, preprocessing runs and mAP."""

    snapshot: str = ""
    """Only those trained on this snapshot."""


@dataclass(frozen=True)
class Compare(Command):
    """Print by how much a version is better than another, on the clips that both were measured on."""

    version: str = "latest"
    """Number, champion or latest."""
    against: str = CHAMPION
    """Number, champion or latest."""


@dataclass(frozen=True)
class Promote(Command):
    """Make a version the champion, whatever the figures say; what they say is noted."""

    version: str = tyro.MISSING
    """Number or latest."""


@dataclass(frozen=True)
class Fetch(Command):
    """Copy a model to a folder, as MLflow loads and serves it; its checkpoint is in artifacts/checkpoint."""

    version: str = CHAMPION
    """Number, champion or latest."""
    to: str = "model"
    """Folder to make."""


@dataclass(frozen=True)
class Publish(Command):
    """Bring a finished run's pictures, tables and models to MLflow, where that failed before."""

    run: str = tyro.MISSING
    """MLflow's id, the run's name there, or its folder in the store."""


def list_models(command: List) -> None:
    rows = describe_versions(command.client(), command.snapshot)
    print(pd.DataFrame(rows).to_string(index=False) if rows else "no model yet")


def compare(command: Compare) -> None:
    client = command.client()
    new, old = (find_version(client, version) for version in (command.version, command.against))
    change = difference(*(predictions_of(client, str(each.run_id), each.tags["kind"]) for each in (new, old)))
    print(f"version {new.version} less version {old.version}: mAP {change}")


def promote_model(command: Promote) -> None:
    client = command.client()
    version = find_version(client, command.version)
    print(f"version {version.version} is the {CHAMPION}: {promote(client, version)}")


def fetch(command: Fetch) -> None:
    client = command.client()
    version = find_version(client, command.version)
    download(client, version, Path(command.to))
    print(f"version {version.version}: {Path(command.to).resolve()}")


def publish_run(command: Publish) -> None:
    client = command.client()
    run = find_run(client, command.run)
    tracked = tracked_run_of(tracking_uri(command.store), run)
    snapshot = load_snapshot(command.store, tracked.snapshot_id)
    publish(tracked, snapshot, run.data.tags["run"])
    list_models(List(command.root, snapshot=tracked.snapshot_id))


COMMANDS: dict[type, Callable[[Any], None]] = {
    List: list_models,
    Compare: compare,
    Promote: promote_model,
    Fetch: fetch,
    Publish: publish_run,
}
NAMES = {"list": List, "compare": Compare, "promote": Promote, "fetch": Fetch, "publish": Publish}


def main(argv: list[str]) -> int:
    return run_job(lambda command: COMMANDS[type(command)](command), NAMES, default_preset="list", argv=argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
