"""Commands on registered models: list, compare, promote, fetch, export, publish."""

import tempfile
from pathlib import Path

import pandas as pd

from ast_model.evaluation.main_metric import compute_difference
from ast_model.export import export_folder
from ast_model.inference import Tagger
from ast_model.pretrained.hugging_face import fits_hugging_face
from ast_model.tracking.card import write_card
from ast_model.tracking.lineage import describe_versions
from ast_model.tracking.promotion import promote
from ast_model.tracking.publish import publish
from ast_model.tracking.pyfunc import CHECKPOINT
from ast_model.tracking.registry import CHAMPION, download, find_version
from ast_model.tracking.run import to_tracked_run
from ast_model.tracking.run_results import fetch_predictions, find_run
from ast_model.tracking.server import connect
from ast_model.tracking.tags import RUN_TAG, VARIANT_TAG
from jobs.checkpoints.settings import (
    CompareVersions,
    ExportVersion,
    FetchModel,
    ListModels,
    ModelsCommand,
    PromoteVersion,
    PublishRun,
)
from jobs.command_line.cli import resolve_root
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.storage import Store


def _store(command: ModelsCommand) -> Store:
    return Store(resolve_root(command.root))


def _client(command: ModelsCommand):
    return connect(_store(command))


def list_models(command: ListModels) -> None:
    """Print a table of all versions."""
    rows = describe_versions(_client(command), command.snapshot)
    print(pd.DataFrame(rows).to_string(index=False) if rows else "no model yet")


def compare(command: CompareVersions) -> None:
    """Print the difference in the main metric between two versions, measured on their common clips."""
    client = _client(command)
    new, old = (find_version(client, version) for version in (command.version, command.against))
    predictions = [fetch_predictions(client, str(each.run_id), each.tags[VARIANT_TAG]) for each in (new, old)]
    print(f"version {new.version} minus version {old.version}: {compute_difference(*predictions)}")


def promote_model(command: PromoteVersion) -> None:
    """Make a version the champion, and print the recorded reason."""
    client = _client(command)
    version = find_version(client, command.version)
    print(f"version {version.version} is the {CHAMPION}: {promote(client, version)}")


def fetch(command: FetchModel) -> None:
    """Download a version's files."""
    client = _client(command)
    version = find_version(client, command.version)
    download(client, version, Path(command.to))
    print(f"version {version.version}: {Path(command.to).resolve()}")


def export_version(command: ExportVersion) -> None:
    """Write a version with its model card as a folder for the Hugging Face hub."""
    client, folder = _client(command), Path(command.to)
    version = find_version(client, command.version)
    with tempfile.TemporaryDirectory() as scratch:
        download(client, version, Path(scratch) / "model")
        tagger = Tagger.load(Path(scratch) / "model" / "artifacts" / CHECKPOINT, device="cpu")
    is_hugging_face = fits_hugging_face(tagger.model.config)
    card = write_card(client, version, folder.resolve().name, command.licence, is_hugging_face)
    export_folder(tagger.model, tagger.metadata, folder, card)
    print(f"version {version.version}: {folder.resolve()}")
    if not is_hugging_face:
        print("transformers has no model of this shape; load it with Tagger.load or load_pretrained")
    if not command.licence:
        print("the card states no licence: name one with --licence")


def publish_run(command: PublishRun) -> None:
    """Publish a finished run, and print its versions."""
    client = _client(command)
    run = find_run(client, command.run)
    tracked = to_tracked_run(client, run)
    snapshot = load_snapshot(_store(command), tracked.snapshot_id)
    publish(tracked, snapshot, run.data.tags[RUN_TAG])
    list_models(ListModels(command.root, snapshot=tracked.snapshot_id))
