"""Calibrate a checkpoint on a held-out split."""

import json
import logging
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from ast_model.evaluation.calibration import Calibration, calibrate, expected_calibration_error
from ast_model.evaluation.ensemble import score_checkpoints
from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.plots import plot_reliability
from ast_model.inference import CALIBRATION
from ast_model.pretrained.weight_files import read_weights
from ast_model.pretrained.weight_sources import find_weights
from ast_model.tracking.run import TrackedRun
from ast_model.tracking.server import connect
from jobs.checkpoints.settings import CalibrateConfig
from jobs.command_line.cli import resolve_root
from pipeline.errors import ConfigError, InputError, TrackingError
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint, load_snapshot
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

FILES = (CALIBRATION, "reliability.png", "thresholds.csv")


def calibrate_checkpoint(config: CalibrateConfig) -> None:
    """Fit on half of the clips, print the gain on the other half, and store a calibration fitted on all clips."""
    folder = _output_folder(config)
    store = Store(resolve_root(config.root))
    snapshot = load_snapshot(store, config.snapshot or None)
    check_fingerprint(snapshot)
    (member,) = score_checkpoints((config.checkpoint,), snapshot, config.split, config.batch_size)
    scores, targets, loss = member.evaluation.scores, member.evaluation.targets, member.loss
    labels = snapshot.labels.names
    method = "temperature" if loss == "ce" and config.method == "platt" else config.method
    is_fitted = _choose_half(snapshot, config.split)
    trial = calibrate(scores[is_fitted], targets[is_fitted], labels, loss, method, config.precision)
    held_out = Evaluation(scores[~is_fitted], targets[~is_fitted], member.evaluation.metrics)
    _print_gain(trial, held_out)
    final = calibrate(scores, targets, labels, loss, method, config.precision)
    folder.mkdir(parents=True, exist_ok=True)
    figure = plot_reliability(held_out.scores, trial.apply(held_out.scores), held_out.targets)
    figure.savefig(folder / "reliability.png")
    columns = {"name": labels, "positives": targets.sum(axis=0), "threshold": np.round(final.thresholds, 4)}
    pd.DataFrame({**columns, "is_shared": final.is_shared}).to_csv(folder / "thresholds.csv", index=False)
    aside = folder / f".{CALIBRATION}"
    aside.write_text(json.dumps(final.to_json(), indent=1, allow_nan=False), encoding="utf-8")
    aside.replace(folder / CALIBRATION)
    if num_shared := sum(final.is_shared):
        log.warning("%d of %d classes have too few clips for a separate fit, and share one", num_shared, len(labels))
    _track(config.checkpoint, folder, store)
    print(f"\n{folder / CALIBRATION}")
    print(f"use it:   python jobs/predict.py --checkpoint {config.checkpoint} --calibrated --audio FILE")


def _track(checkpoint: str, folder: Path, store: Store) -> None:
    """Upload the files to the checkpoint's MLflow run, if it has one."""
    run_id = read_weights(checkpoint).description.get("tracking_run")
    if not run_id:
        return
    try:
        with tempfile.TemporaryDirectory() as copies:
            for name in FILES:
                shutil.copy(folder / name, copies)
            TrackedRun(connect(store).tracking_uri, run_id).log_files(Path(copies), "calibration")
    except TrackingError as error:
        log.warning("the calibration is stored, but not in MLflow: %s", error)


def _output_folder(config: CalibrateConfig) -> Path:
    """Return `config.output`, or else the folder of the checkpoint's weights."""
    if config.output:
        return Path(config.output)
    path = Path(config.checkpoint).expanduser()
    if not path.exists():
        raise ConfigError(f"expected --output for a checkpoint that is not on this machine ({config.checkpoint})")
    return find_weights(path).parent


def _choose_half(snapshot: Snapshot, split: str) -> np.ndarray:
    """Return a mask (N,) of the split's clips to fit. All clips of a video are in the same half."""
    keys = snapshot.index["key"].take(snapshot.rows_of((split,))).to_pylist()
    is_fitted = np.array([zlib.crc32(key.rpartition("_")[0].encode()) % 2 == 0 for key in keys])
    if is_fitted.all() or not is_fitted.any():
        raise InputError(f"expected clips of several videos in {split}, found {len(keys)} clips of a single video")
    return is_fitted


def _print_gain(trial: Calibration, held_out: Evaluation) -> None:
    before, after = held_out.scores, trial.apply(held_out.scores)
    errors = [expected_calibration_error(each, held_out.targets) for each in (before, after)]
    f1 = [
        f1_score(held_out.targets, decisions, average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]
        for decisions in (before >= 0.5, trial.decide(before))
    ]
    print(f"on the held-out half ({len(before)} clips)")
    print(f"  calibration error   {errors[0]:.4f} before, {errors[1]:.4f} after")
    print(f"  macro F1            {f1[0]:.4f} at threshold 0.5, {f1[1]:.4f} at the fitted thresholds")
