"""Fine-tune on own sounds. Reads and preprocesses them, trains all weights or a head, and prints the next commands."""

import dataclasses
import hashlib
import logging
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.config import flag_of
from ast_model.pretrained.weight_files import read_weights
from ast_model.pretrained.weight_sources import locate_weights
from ast_model.training.step_metrics import Metrics
from jobs.command_line.cli import resolve_root
from jobs.command_line.program import command_words
from jobs.datasets.local_clips import preprocess_local_clips
from jobs.own_sounds.baseline import measure_baseline
from jobs.own_sounds.cross_validation import cross_validate
from jobs.own_sounds.fitted_runs import FinetuneRun, HeadMethod, fit_head_in_run
from jobs.own_sounds.lengths import warn_of_distinct_lengths
from jobs.own_sounds.near_copies import describe_near_copies, find_near_copies
from jobs.own_sounds.settings import FinetuneConfig
from jobs.own_sounds.training_plan import (
    HEAD_PRESET,
    TARGET_SAMPLES,
    choose_head_only,
    count_training_clips,
    faster_alternatives,
    is_fitted_head,
    list_folds,
    normalise_like_head,
    plan_model,
    plan_training,
)
from jobs.training.initial_weights import open_initial_weights
from jobs.training.ray_train import choose_gpu
from jobs.training.runs import TrackedJob
from jobs.training.start_or_resume import start_or_resume
from jobs.training.training_clips import check_selection, select_training_clips
from pipeline.cluster.session import ray_session
from pipeline.errors import ConfigError
from pipeline.recordings.own_sounds import CutConfig, read_sounds
from pipeline.recordings.sound_tables import SPLITS
from pipeline.recordings.tables import LabelledClip
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

PUBLISHED_AST = "MIT/ast-finetuned-audioset-10-10-0.4593"


def finetune(config: FinetuneConfig) -> None:
    """Train on own sounds. Prints the metrics, the address of the model, and commands to use it."""
    if not config.data:
        raise ConfigError(
            "--data is not set: name a table with the columns path,labels, or a folder with one folder per class"
        )
    if config.resume.startswith(HEAD_PRESET):
        raise ConfigError(
            f"--resume {config.resume}: a run that fits only heads has nothing to resume; omit --resume, since finished"
            " embeddings are stored"
        )
    check_selection(config.selection)
    if config.init:
        config = dataclasses.replace(config, init=locate_weights(config.init))
        warn_if_head_on_random_weights(config.init)
    clips, classes = read_sounds(Path(config.data), _cut_config(config))
    log_class_counts(clips, classes)
    warn_of_distinct_lengths(clips)
    if not config.init and (num_clips := count_training_clips(clips)) < TARGET_SAMPLES:
        advice = "%d clips are too few to train from random weights; start from a trained AST: --init %s"
        log.warning(advice, num_clips, PUBLISHED_AST)
    model = plan_model(config, clips, len(classes))
    train = normalise_like_head(open_initial_weights(plan_training(config, clips), model, config.resume))
    run = FinetuneRun(config.preset, config.data, model, train, config.resume, config.ray)
    store = Store(f"{resolve_root(config.root)}/{store_name(config.data)}")
    with ray_session():
        run = dataclasses.replace(run, ray=choose_gpu(config.ray))
        method = choose_method(config, run, clips)
        snapshot = preprocess_local_clips(clips, classes, store)
        leaks = describe_near_copies(snapshot, find_near_copies(snapshot), clips)
        for line in leaks:
            log.warning("%s", line)
        if folds := list_folds(clips):
            lines = cross_validate(run, snapshot, folds, config.selection, method)
        else:
            lines = _train_once(run, snapshot, config, method)
    print("\n".join([*leaks, *lines]))


def _cut_config(config: FinetuneConfig) -> CutConfig:
    return CutConfig(config.clip_s, config.eval_share, config.seed, config.group_by, config.folds)


def store_name(data: str) -> str:
    """Return the name of the store for a table or folder, made of its name and a digest of its path.

    A changed table keeps its store, so only new clips are converted and embedded.
    """
    path = Path(data).absolute()
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', path.stem)}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def choose_method(config: FinetuneConfig, run: FinetuneRun, clips: Sequence[LabelledClip]) -> HeadMethod | None:
    """Return the settings for fitting only a head, or None to train all weights."""
    if not choose_head_only(config, bool(run.ray.use_gpu), clips):
        log.info("faster: %s", "; ".join(faster_alternatives(config, run.model)))
        return None
    return HeadMethod(
        group_of={clip.key: clip.group for clip in clips},
        faster=faster_alternatives(config, run.model, with_head=False),
    )


def _train_once(run: FinetuneRun, snapshot: Snapshot, config: FinetuneConfig, method: HeadMethod | None) -> list[str]:
    """Train on the training split, and return the lines to print."""
    if not config.resume:  # a resumed run trains on its own snapshot
        snapshot = select_training_clips(snapshot, config.selection, run.train)
    baseline = measure_baseline(snapshot, run.train)
    if method:
        job, report = fit_head_in_run(run, snapshot, baseline, method)
        lines, scores = report.lines(), [report.metrics]
    else:
        job, scores = start_or_resume(run, snapshot, initial_metrics=baseline.tracked_metrics())
        lines = [_format_epoch(metrics) for metrics in scores]
    lines.append(f"{'baseline':12} {baseline.compare(scores)}")
    return [*lines, *_next_steps(job, config, scores, bool(method))]


def warn_if_head_on_random_weights(init: str) -> None:
    """Log a warning if the initial weights are a head fitted on random weights.

    Training all weights would first destroy the features to which such a head was fitted.
    """
    file = read_weights(init)
    if is_fitted_head(file) and not file.description.get("train", {}).get("init"):
        log.warning(
            "%s is a head fitted on random weights; training all weights destroys the features that it uses"
            " (docs/your-own-sounds.md): omit --init, or start from a trained AST: --init %s",
            *(init, PUBLISHED_AST),
        )


def _next_steps(job: TrackedJob, config: FinetuneConfig, history: Sequence[Metrics], is_head_only: bool) -> list[str]:
    """Return lines with the addresses of the checkpoints and commands to use them."""
    store = job.store
    best, averages = best_checkpoint(store, job.folder), list_checkpoints(store, job.average_folder)
    found = {"best epoch": best[0] if best else "", "average": averages[-1] if averages else ""}
    found = {name: store.url(checkpoint) for name, checkpoint in found.items() if checkpoint}
    lines = [f"{'checkpoint' if is_head_only else name:12} {address}" for name, address in found.items()]
    if address := found.get("average" if is_average_better(history) else "best epoch") or next(
        iter(found.values()), ""
    ):
        lines.append(
            f"tag with     {shlex.join((*command_words('predict'), '--checkpoint', address, '--audio'))} FILES"
        )
        if is_head_only and config.init:
            words = (*command_words("finetune"), *_flags_of_data(config), "--init", address, "--no-head-only")
            lines.append(f"train all    {shlex.join(words)}")
    return lines


def is_average_better(history: Sequence[Metrics]) -> bool:
    """Return True if the averaged weights score at least as well as the best epoch, by accuracy if it is known."""
    metric = "accuracy" if any("eval/accuracy" in epoch for epoch in history) else "mAP"
    averages = [epoch[f"eval/average/{metric}"] for epoch in history if f"eval/average/{metric}" in epoch]
    epochs = [epoch[f"eval/{metric}"] for epoch in history if f"eval/{metric}" in epoch]
    return bool(averages) and averages[-1] >= max(epochs, default=0.0)


def _flags_of_data(config: FinetuneConfig) -> list[str]:
    """Return the flags that select the same clips and store in another command."""
    default = FinetuneConfig(data=config.data)
    names = ("data", "root", "clip_s", "eval_share", "group_by", "seed")
    changed = [name for name in names if name == "data" or getattr(config, name) != getattr(default, name)]
    return [word for name in changed for word in (flag_of(name), str(getattr(config, name)))]


def _format_epoch(metrics: Metrics) -> str:
    values = (f"{name} {value:.4f}" for name, value in sorted(metrics.items()) if name != "epoch")
    return f"epoch {metrics['epoch']:3.0f}   " + "   ".join(values)


def log_class_counts(clips: Sequence[LabelledClip], classes: Sequence[str]) -> None:
    counts = Counter((clip.split, label) for clip in clips for label in clip.labels)
    splits = list_folds(clips) or [split for split in SPLITS if any(clip.split == split for clip in clips)]
    for name in classes:
        log.info("%-30s %s", name, ", ".join(f"{counts[split, name]} {split}" for split in splits))
