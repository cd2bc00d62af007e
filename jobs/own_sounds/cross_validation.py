"""Cross-validate on own sounds, with one child run per fold and shared embeddings."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ast_model.tracking.run import TrackedRun
from ast_model.training.step_metrics import Metrics
from jobs.datasets.fold_results import choose_epoch
from jobs.datasets.folds import open_parent, train_fold
from jobs.own_sounds.baseline import Baseline, measure_baseline
from jobs.own_sounds.fitted_runs import FinetuneRun, HeadMethod, fit_head_of_fold
from jobs.own_sounds.training_plan import HEAD_PRESET, plan_fold
from jobs.training.training_clips import select_training_clips
from pipeline.config import SelectionConfig
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import RunFiles


def cross_validate(
    run: FinetuneRun,
    snapshot: Snapshot,
    folds: Sequence[str],
    selection: SelectionConfig,
    method: HeadMethod | None,
) -> list[str]:
    """Train and test on each fold, and measure the baseline. Returns the lines to print.

    method: settings for fitting only heads; None trains all weights.
    """
    if method:
        run = dataclasses.replace(run, preset=HEAD_PRESET)
    known: dict[str, np.ndarray] = {}
    histories: dict[str, list[Metrics]] = {}
    baselines: dict[str, Baseline] = {}
    parent_name, parent = open_parent(run, snapshot)
    with parent.end_on_exit():
        for fold in folds:
            of_fold = dataclasses.replace(run, train=plan_fold(run.train, folds, fold))
            clips = select_training_clips(snapshot, selection, of_fold.train)
            baselines[fold] = measure_baseline(clips, of_fold.train, known)
            histories[fold] = _train_fold(of_fold, clips, baselines[fold], method, parent_name, parent)
        metric = "accuracy" if all("accuracy" in each.metrics for each in baselines.values()) else "mAP"
        scores = {fold: baseline.metrics[metric] for fold, baseline in baselines.items()}
        results = choose_epoch(histories, "last", metric, scores)
        results.log(parent)
    address = snapshot.store.url(f"{RunFiles(parent_name).folder}-{folds[0]}")
    return [*results.lines(), f"{'runs':10} {address} and so on; train once with splits to get one model"]


def _train_fold(
    run: FinetuneRun,
    snapshot: Snapshot,
    baseline: Baseline,
    method: HeadMethod | None,
    parent_name: str,
    parent: TrackedRun,
) -> list[Metrics]:
    if method is None:
        return train_fold(run, snapshot, parent_name, parent, baseline.tracked_metrics())
    name = f"{parent_name}-{run.train.eval_split}"
    return [fit_head_of_fold(run, snapshot, baseline, method, name, parent).metrics]
