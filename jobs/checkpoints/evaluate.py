"""Evaluate a checkpoint or an ensemble on a split of a snapshot."""

import difflib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from ast_model.evaluation.clip_lists import Coverage, find_listed_clips
from ast_model.evaluation.ensemble import score_checkpoints
from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.main_metric import estimate_main_metric
from ast_model.evaluation.missing_clips import bound_whole_list
from ast_model.evaluation.predictions import make_predictions
from ast_model.evaluation.result_files import write_evaluation
from jobs.checkpoints.settings import EvaluateConfig
from jobs.command_line.cli import resolve_root
from pipeline.errors import ConfigError
from pipeline.labels import Labels
from pipeline.snapshots.snapshot import check_fingerprint, load_snapshot
from pipeline.store.layout import EVALUATIONS
from pipeline.store.storage import Store


def evaluate_checkpoints(config: EvaluateConfig) -> None:
    """Score each checkpoint, print its metrics and the ensemble's, and write the ensemble's files."""
    store = Store(resolve_root(config.root))
    snapshot = load_snapshot(store, config.snapshot or None)
    check_fingerprint(snapshot)
    check_classes(config.classes, snapshot.labels)
    _, num_listed = find_listed_clips(snapshot, config.split, config.clips)
    rows, member = [], None
    for member in score_checkpoints(config.checkpoints, snapshot, config.split, config.batch_size, config.clips):
        alone, together = member.evaluation.metrics_by_name, member.ensemble.metrics_by_name
        print(
            f"{member.checkpoint}\n  alone   {_format_line(alone)}"
            + (f"\n  mean    {_format_line(together)}" if rows else "")
        )
        mean_so_far = {f"mean_so_far_{name}": value for name, value in together.items()}
        rows.append({"checkpoint": member.checkpoint, **alone, **mean_so_far})
    if member is None:
        raise ConfigError("--checkpoints is empty: name at least one")
    evaluation = member.ensemble
    main = estimate_main_metric(evaluation, config.bootstrap)
    coverage = Coverage(config.clips, num_listed, len(evaluation.scores))
    bounds = {**main.bounds, **(_report_coverage(evaluation, coverage) if config.clips else {})}
    folder = _output_folder(config, store)
    # Checkpoints do not record their training splits, so assume all other splits.
    splits = tuple(sorted(set(snapshot.splits) - {config.split})), config.split
    predictions = make_predictions(evaluation, snapshot, splits, epoch=0, coverage=coverage)
    write_evaluation(folder, predictions, snapshot, ", ".join(config.checkpoints), config.classes)
    pd.DataFrame(rows).to_csv(folder / "checkpoints.csv", index=False)
    record = {"snapshot": snapshot.snapshot_id, **asdict(config), "coverage": str(coverage)}
    record |= {**evaluation.metrics_by_name, **bounds}
    (folder / "metrics.json").write_text(json.dumps(record, indent=1, allow_nan=False))
    num_scored = evaluation.metrics.num_classes_scored
    clips = f"{len(evaluation.scores)} clips of {config.split}, {num_scored} classes scored"
    print(f"{main} (95 % interval) on {clips}: {folder}")


def _report_coverage(evaluation: Evaluation, coverage: Coverage) -> dict[str, float]:
    """Print the share of the list that was scored, and return bounds of the mAP on the whole list."""
    print(f"  clips   {coverage.clip_list}: {coverage}")
    num_missing = coverage.num_listed - coverage.num_scored
    if not num_missing:
        return {}
    low, high = bound_whole_list(evaluation.scores, evaluation.targets, num_missing)
    print(f"  mAP on the whole list, if the missing clips are random: {low:.4f} to {high:.4f}")
    return {"mAP_whole_list_low": low, "mAP_whole_list_high": high}


def check_classes(classes: Sequence[str], labels: Labels) -> None:
    """Raise ConfigError, with close matches, for a name that is not a class."""
    for name in classes:
        if name not in labels.names:
            close = difflib.get_close_matches(name, labels.names, n=3, cutoff=0.3)
            raise ConfigError(
                f"expected the name of a class, found {name!r}; put each name in quotation marks."
                + (f" Similar: {', '.join(map(repr, close))}" if close else " labels.csv of the snapshot lists them")
            )


def _output_folder(config: EvaluateConfig, store: Store) -> Path:
    parent = Path(store.path(EVALUATIONS) if store.is_local else EVALUATIONS)
    folder = Path(config.output) if config.output else parent / f"{config.split}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _format_line(metrics: dict[str, float]) -> str:
    return "   ".join(f"{name} {value:.4f}" for name, value in metrics.items())
