"""Fine-tune on own sounds. Reads and preprocesses them, trains all weights or a head, and prints the next commands."""

import dataclasses
import logging
import shlex
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.config import ASTConfig, TrainConfig, flag_of
from ast_model.pretrained.weight_files import read_weights
from ast_model.pretrained.weight_sources import locate_weights
from ast_model.training.step_metrics import Metrics
from jobs.command_line.cli import resolve_root
from jobs.command_line.program import command_words
from jobs.command_line.run_names import new_run_name
from jobs.command_line.settings import RayConfig
from jobs.datasets.local_clips import preprocess_local_clips
from jobs.own_sounds.baseline import Baseline, measure_baseline
from jobs.own_sounds.head_only import HeadReport, head_settings, train_head
from jobs.own_sounds.settings import FinetuneConfig
from jobs.own_sounds.training_plan import (
    TARGET_SAMPLES,
    choose_head_only,
    faster_alternatives,
    plan_model,
    plan_training,
)
from jobs.training.initial_weights import open_initial_weights
from jobs.training.ray_train import choose_gpu
from jobs.training.runs import TrackedJob, begin_run, end_run_on_exit
from jobs.training.start_or_resume import start_or_resume
from jobs.training.training_clips import check_selection, select_training_clips
from pipeline.cluster.session import ray_session
from pipeline.errors import ConfigError
from pipeline.recordings.own_sounds import SPLITS, CutConfig, read_sounds
from pipeline.recordings.tables import LabelledClip, digest_of_tables, write_tables
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

HEAD_PRESET = "finetune_head"
"""Preset and name prefix of runs that fit only a head."""

PUBLISHED_AST = "MIT/ast-finetuned-audioset-10-10-0.4593"


@dataclass(frozen=True)
class FinetuneRun:
    """Settings of a fine-tuning run after its data was read."""

    preset: str
    data: str
    model: ASTConfig
    train: TrainConfig
    resume: str
    ray: RayConfig

    @property
    def data_name(self) -> str:
        path = Path(self.data).resolve()
        return path.name if path.is_dir() else path.stem


def finetune(config: FinetuneConfig) -> None:
    """Train on own sounds. Prints the metrics, the address of the model, and commands to use it."""
    if not config.data:
        raise ConfigError(
            "--data is not set: name a table with the columns path,labels, or a folder with one folder per class"
        )
    check_selection(config.selection)
    if config.init:
        config = dataclasses.replace(config, init=locate_weights(config.init))
        warn_if_head_on_random_weights(config.init)
    clips, classes = read_sounds(Path(config.data), CutConfig(config.clip_s, config.eval_share, config.seed))
    log_class_counts(clips, classes)
    if not config.init and (num_clips := sum(clip.split == "train" for clip in clips)) < TARGET_SAMPLES:
        advice = "%d clips are too few to train from random weights; start from a trained AST: --init %s"
        log.warning(advice, num_clips, PUBLISHED_AST)
    model = plan_model(config, clips, len(classes))
    train = open_initial_weights(plan_training(config, clips), model, config.resume)
    run = FinetuneRun(config.preset, config.data, model, train, config.resume, config.ray)
    store = Store(f"{resolve_root(config.root)}/{_digest(clips, classes)}")
    with ray_session():
        run = dataclasses.replace(run, ray=choose_gpu(config.ray))
        is_head_only = choose_head_only(config, bool(run.ray.use_gpu), clips)
        snapshot = preprocess_local_clips(clips, classes, store)
        if not config.resume:  # a resumed run trains on its own snapshot
            snapshot = select_training_clips(snapshot, config.selection, train)
        baseline = measure_baseline(snapshot, train)
        if is_head_only:
            job, report = _train_head_only(run, snapshot, baseline)
            lines, scores = report.lines(), [report.metrics]
        else:
            log.info("faster: %s", "; ".join(faster_alternatives(config, model)))
            job, scores = start_or_resume(run, snapshot, initial_metrics=baseline.tracked_metrics())
            lines = [_format_epoch(metrics) for metrics in scores]
    lines.append(f"{'baseline':12} {baseline.compare(scores)}")
    print("\n".join([*lines, *_next_steps(job, config, scores, is_head_only)]))


def _train_head_only(run: FinetuneRun, snapshot: Snapshot, baseline: Baseline) -> tuple[TrackedJob, HeadReport]:
    """Fit a head as a separate run, and return the run and its report."""
    run = dataclasses.replace(run, preset=HEAD_PRESET, train=head_settings(run.train))
    job = begin_run(run, snapshot, new_run_name(run.preset))
    with end_run_on_exit(job):
        job.tracker.log_metrics(baseline.tracked_metrics(), step=0)
        return job, train_head(job, bool(run.ray.use_gpu))


def warn_if_head_on_random_weights(init: str) -> None:
    """Log a warning if the initial weights are a head fitted on random weights.

    Training all weights would first destroy the features to which such a head was fitted.
    """
    description = read_weights(init).description
    if str(description.get("run", "")).startswith(HEAD_PRESET) and not description.get("train", {}).get("init"):
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
    names = ("data", "root", "clip_s", "eval_share", "seed")
    changed = [name for name in names if name == "data" or getattr(config, name) != getattr(default, name)]
    return [word for name in changed for word in (flag_of(name), str(getattr(config, name)))]


def _format_epoch(metrics: Metrics) -> str:
    values = (f"{name} {value:.4f}" for name, value in sorted(metrics.items()) if name != "epoch")
    return f"epoch {metrics['epoch']:3.0f}   " + "   ".join(values)


def log_class_counts(clips: Sequence[LabelledClip], classes: Sequence[str]) -> None:
    counts = Counter((clip.split, label) for clip in clips for label in clip.labels)
    splits = [split for split in SPLITS if any(clip.split == split for clip in clips)]
    for name in classes:
        log.info("%-30s %s", name, ", ".join(f"{counts[split, name]} {split}" for split in splits))


def _digest(clips: Sequence[LabelledClip], classes: Sequence[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_tables(clips, classes, Path(folder))
        return digest_of_tables(Path(folder))
