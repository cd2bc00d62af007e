"""ESC-50: a training for each of its five folds."""

import csv
import dataclasses
from pathlib import Path

from jobs.config import FOLDS, ESC50Config
from jobs.launch.cli import resolve_root
from jobs.launch.folds import choose_epoch, describe_result, log_result, open_parent, train_fold
from jobs.launch.initial_weights import open_initial_weights
from jobs.launch.recordings import convert, official_folder
from jobs.launch.runs import ending
from pipeline.cluster import ray_session
from pipeline.errors import InputError, NoClipsError
from pipeline.recordings.tables import Recording
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

CLIP_MS = 5_000
TABLE = "meta/esc50.csv"


def esc50(config: ESC50Config) -> None:
    """Train and test on each fold, and print the accuracy of each and their mean."""
    config = dataclasses.replace(config, train=open_initial_weights(config.train, config.model, config.resume))
    store = Store(resolve_root(config.root))
    recordings, classes = read_esc50(official_folder(config, store, TABLE))
    with ray_session():
        snapshot = convert(recordings, classes, store)
        check_folds(snapshot, config)
        run, parent = open_parent(config, snapshot)
        with ending(parent):
            histories = [train_fold(config_of_fold(config, fold), snapshot, run, parent) for fold in config.folds]
            result = {"folds": config.folds, **choose_epoch(histories, config.choose)}
            store.write_json("esc50.json", result | {"run": run, "snapshot": snapshot.snapshot_id})
            log_result(parent, result)
    print("\n".join(describe_result(result)))


def read_esc50(folder: Path) -> tuple[list[Recording], list[str]]:
    """Read the official folder; each fold is a split. Raises InputError if it is another."""
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        name_of = {int(row["target"]): row["category"] for row in rows}
        recordings = [
            Recording(folder / "audio" / row["filename"], (row["category"],), f"fold{int(row['fold'])}", 0, CLIP_MS)
            for row in rows
        ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"expected ESC-50's {TABLE} with filename,fold,target,category in {folder}, found: {error!r}"
        ) from error
    missing = [recording.path.name for recording in recordings if not recording.path.is_file()]
    if missing or not recordings:
        raise InputError(
            f"{folder / TABLE} names {len(recordings)} files; {len(missing)} are not in {folder / 'audio'}"
            f" ({', '.join(missing[:3])}): unpack the archive again"
        )
    return recordings, [name_of[target] for target in sorted(name_of)]


def config_of_fold(config: ESC50Config, fold: int) -> ESC50Config:
    """Return the settings of one fold: test on it, train on the others."""
    others = tuple(f"fold{other}" for other in FOLDS if other != fold)
    train = dataclasses.replace(config.train, train_splits=others, eval_split=f"fold{fold}")
    return dataclasses.replace(config, train=train)


def check_folds(snapshot: Snapshot, config: ESC50Config) -> None:
    """Raise NoClipsError, before the first fold is trained, if one of them leaves a class without training clips."""
    if config.train.allow_empty_classes:
        return
    for fold in config.folds:
        counts = snapshot.class_counts(config_of_fold(config, fold).train.train_splits)
        empty = [name for name, count in zip(snapshot.labels.names, counts, strict=True) if count == 0]
        if empty:
            raise NoClipsError(
                f"fold {fold} can't be tested: all clips of {', '.join(empty[:5])} are in it, so none is left to"
                " train on. Spread them over the folds, leave the fold out of --folds, or set --allow-empty-classes"
            )
