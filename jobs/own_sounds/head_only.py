"""Fine-tuning of the head alone: embeddings computed once and kept, a logistic head fitted to them in seconds.

The result is a run and a checkpoint like those of any other training.
"""

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ast_model.checkpoints.async_writer import Saver
from ast_model.checkpoints.checkpoint import Checkpoint, LoopState
from ast_model.config import AugmentConfig, TrainConfig
from ast_model.distributed import World
from ast_model.embeddings.extract import read_embeddings
from ast_model.embeddings.few_shot import measure_few_shots
from ast_model.embeddings.head import LinearHead, fit_head
from ast_model.evaluation.evaluate import Evaluation
from ast_model.losses import scores_from_logits
from ast_model.metrics import tagging_metrics
from ast_model.model import AST
from ast_model.training.reporter import Reporter, eval_metrics
from ast_model.training.trainer import initial_model
from jobs.own_sounds.embedding import embed_snapshot
from jobs.training.runs import TrackedJob, history_name
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)

ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class HeadReport:
    """A fitted head's metrics, and what it took."""

    metrics: dict[str, float]
    main_metric: str
    head: LinearHead
    embed_s: float
    """Seconds for the embeddings that were not there yet."""
    fit_s: float
    few_shots: pd.DataFrame | None
    """Score by clips per class; none unless asked for."""

    def lines(self) -> list[str]:
        """Return the report as text."""
        name, chosen = self.main_metric, self.head.penalty
        metrics = ", ".join(f"{key.removeprefix('eval/')} {value:.4f}" for key, value in self.metrics.items())
        lines = [
            f"{'evaluation':12} {metrics}",
            f"{'penalty':12} {chosen:.1e}, {name} {self.head.score_of_penalty.get(chosen, np.nan):.4f}"
            " in cross-validation on the training clips",
            f"{'time':12} {self.embed_s:.1f} s for embeddings, {self.fit_s:.1f} s for the head",
        ]
        if self.few_shots is not None:
            lines += [f"\n{name} by training clips per class", self.few_shots.to_string(index=False)]
        return lines


def head_settings(train: TrainConfig) -> TrainConfig:
    """Return the settings that the record of a fitted head has: one epoch, without what only training needs."""
    augment = AugmentConfig(mixup_probability=0.0, max_freq_mask_bins=0, max_time_mask_frames=0)
    return dataclasses.replace(train, num_epochs=1, average_last_epochs=0, augment=augment)


def train_head(job: TrackedJob, num_views: int, shots: Sequence[int], use_gpu: bool) -> HeadReport:
    """Embed all clips, fit a head to those of training, evaluate it, and write checkpoint, history and predictions."""
    model = initial_model(job).eval()
    job, snapshot = dataclasses.replace(job, model=model.config), job.snapshot  # weights bring their own epsilons
    started_s = time.monotonic()
    plan = embed_snapshot(snapshot, model, job.normalisation, num_views, use_gpu)
    embeddings_NVD, embed_s = read_embeddings(plan), time.monotonic() - started_s

    started_s = time.monotonic()
    train_rows, eval_rows = snapshot.rows_of(job.config.train_splits), snapshot.rows_of((job.config.eval_split,))
    features_NVD = _normalise(model, embeddings_NVD)
    train_targets, eval_targets = snapshot.targets(train_rows).toarray(), snapshot.targets(eval_rows).toarray()
    head = fit_head(
        features_NVD[train_rows].reshape(-1, features_NVD.shape[-1]),
        train_targets.repeat(num_views, axis=0),
        job.config.loss,
        groups_N=np.repeat(recordings_of(snapshot, train_rows), num_views).tolist(),
        seed=job.config.seed,
    )
    fit_s = time.monotonic() - started_s
    with torch.no_grad():
        model.head.linear.weight.copy_(torch.from_numpy(head.weight_CD))
        model.head.linear.bias.copy_(torch.from_numpy(head.bias_C))
        logits_NC = model.head(torch.from_numpy(embeddings_NVD[eval_rows, 0]))
    scores = scores_from_logits(logits_NC, job.config.loss).numpy()
    evaluation = Evaluation(scores, eval_targets.astype(bool), tagging_metrics(scores, eval_targets), eval_rows)
    metrics = eval_metrics(evaluation, "eval")
    job.tracker.log_params({"head.penalty": f"{head.penalty:.1e}", "head.num_views": str(num_views)})
    _save(job, model, evaluation, metrics)

    few_shots = None
    if shots:
        few_shots = measure_few_shots(
            (features_NVD[train_rows, 0], train_targets), (features_NVD[eval_rows, 0], eval_targets), job.config, shots
        )
    return HeadReport(metrics, evaluation.main_metric, head, embed_s, fit_s, few_shots)


def recordings_of(snapshot: Snapshot, rows: np.ndarray) -> list[str]:
    """Return the recording that each clip was cut from: its key without the start."""
    return [key.rpartition("_")[0] for key in snapshot.index["key"].take(rows).to_pylist()]


def _normalise(model: AST, embeddings_NVD: np.ndarray) -> np.ndarray:
    """Take embeddings through the head's LayerNorm, so that the fitted weights can be its linear layer's."""
    with torch.no_grad():
        return model.head.norm(torch.from_numpy(embeddings_NVD)).numpy()


def _save(job: TrackedJob, model: AST, evaluation: Evaluation, metrics: dict[str, float]) -> None:
    """Write what a training of one epoch leaves: checkpoint, best.json, predictions and history."""
    loop = LoopState(epoch=1, history=[{"epoch": 1, **metrics}])
    saver, reporter = Saver(job.store, job.folder, job.config.checkpoints, num_steps=0), Reporter(job, ALONE)
    with closing(saver):
        saver.submit(Checkpoint(loop, model=model.state_dict(), description=job.describe()), num_steps=1)
        saver.submit_evaluation(loop, evaluation.metrics_by_name[evaluation.main_metric])
        saver.wait()
        reporter.log_checkpoints(saver.completed())
    reporter.log_epoch(loop.history, evaluation)
    job.store.write_json(history_name(job.run), loop.history)
