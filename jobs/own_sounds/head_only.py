"""Fine-tune only the head, as a logistic regression on stored embeddings that takes seconds.

The resulting run and checkpoint have the same form as after training all weights.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from ast_model.checkpoints.async_writer import CheckpointWriter
from ast_model.checkpoints.checkpoint import Checkpoint, LoopState
from ast_model.config import AugmentConfig, TrainConfig
from ast_model.distributed import World
from ast_model.embeddings.extract import read_embeddings
from ast_model.embeddings.head import LinearHead, fit_head
from ast_model.evaluation.evaluate import Evaluation
from ast_model.losses import scores_from_logits
from ast_model.metrics import tagging_metrics
from ast_model.model import AST
from ast_model.training.job import Launcher
from ast_model.training.reporter import Reporter, eval_metrics
from ast_model.training.trainer import initial_model
from jobs.own_sounds.embedding import embed_snapshot
from jobs.own_sounds.training_plan import embedding_normalisation
from jobs.training.runs import TrackedJob
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import RunFiles

log = logging.getLogger(__name__)

SINGLE_PROCESS = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class HeadReport:
    """Metrics and penalty of a fitted head, and the time it took."""

    metrics: dict[str, float]
    main_metric: str
    head: LinearHead
    embed_s: float
    """Seconds spent computing embeddings that were not stored yet."""
    fit_s: float

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        name, chosen = self.main_metric, self.head.penalty
        metrics = ", ".join(f"{key.removeprefix('eval/')} {value:.4f}" for key, value in self.metrics.items())
        return [
            f"{'evaluation':12} {metrics}",
            f"{'penalty':12} {chosen:.1e}, {name} {self.head.score_of_penalty.get(chosen, np.nan):.4f}"
            " in cross-validation on the training clips",
            f"{'time':12} {self.embed_s:.1f} s for embeddings, {self.fit_s:.1f} s for the head",
        ]


def head_settings(train: TrainConfig) -> TrainConfig:
    """Return the settings to record for a fitted head: one epoch, no augmentation and no weight averaging."""
    augment = AugmentConfig(mixup_probability=0.0, max_freq_mask_bins=0, max_time_mask_frames=0)
    return dataclasses.replace(train, num_epochs=1, average_last_epochs=0, augment=augment)


def train_head(
    job: TrackedJob, use_gpu: bool, group_of: Mapping[str, str] | None = None, faster: Sequence[str] = ()
) -> HeadReport:
    """Embed all clips, fit a head to the training clips, evaluate it, and store the results.

    group_of: group of each clip by key, which cross-validation keeps together. Default: the clips of a file.
    faster: alternatives that the estimate of the remaining time names.
    """
    model, norm = initial_model(job).eval(), embedding_normalisation(job.config.init)
    # Loaded weights define their own LayerNorm epsilons.
    job = dataclasses.replace(
        job, model=model.config, config=dataclasses.replace(job.config, mean=norm.mean, std=norm.std)
    )
    started_s = time.monotonic()
    plan = embed_snapshot(job.snapshot, model, norm, use_gpu, faster)
    embeddings_ND, embed_s = read_embeddings(plan, job.snapshot), time.monotonic() - started_s

    started_s = time.monotonic()
    head = _fit(job, model, embeddings_ND, group_of)
    fit_s = time.monotonic() - started_s
    evaluation = _evaluate(job, model, embeddings_ND)
    metrics = eval_metrics(evaluation, "eval")
    job.tracker.log_params({"head.penalty": f"{head.penalty:.1e}"})
    _save(job, model, evaluation, metrics)
    return HeadReport(metrics, evaluation.main_metric, head, embed_s, fit_s)


def _fit(job: TrackedJob, model: AST, embeddings_ND: np.ndarray, group_of: Mapping[str, str] | None) -> LinearHead:
    """Fit a head to the training clips and copy its weights into the model."""
    snapshot = job.snapshot
    rows = snapshot.rows_of(job.config.train_splits)
    with torch.no_grad():
        # The model applies a LayerNorm before its linear layer, so fit to normalised embeddings.
        features_ND = model.head.norm(torch.from_numpy(embeddings_ND[rows])).numpy()
    head = fit_head(
        features_ND,
        snapshot.targets(rows).toarray(),
        job.config.loss,
        groups_N=groups_of_clips(snapshot, rows, group_of),
        seed=job.config.seed,
    )
    with torch.no_grad():
        model.head.linear.weight.copy_(torch.from_numpy(head.weight_CD))
        model.head.linear.bias.copy_(torch.from_numpy(head.bias_C))
    return head


def _evaluate(job: TrackedJob, model: AST, embeddings_ND: np.ndarray) -> Evaluation:
    rows = job.snapshot.rows_of((job.config.eval_split,))
    targets = job.snapshot.targets(rows).toarray()
    with torch.no_grad():
        logits_NC = model.head(torch.from_numpy(embeddings_ND[rows]))
    scores = scores_from_logits(logits_NC, job.config.loss).numpy()
    return Evaluation(scores, targets.astype(bool), tagging_metrics(scores, targets), rows)


def groups_of_clips(snapshot: Snapshot, rows: np.ndarray, group_of: Mapping[str, str] | None = None) -> list[str]:
    """Return the group of each clip. Default: its file, which is the clip's key without the start."""
    keys = snapshot.index["key"].take(rows).to_pylist()
    return [group_of[key] if group_of else key.rpartition("_")[0] for key in keys]


def _save(job: TrackedJob, model: AST, evaluation: Evaluation, metrics: dict[str, float]) -> None:
    """Write the files of a run with one epoch: checkpoint, best.json, predictions and history."""
    loop = LoopState(epoch=1, history=[{"epoch": 1, **metrics}])
    saver, reporter = (
        CheckpointWriter(job.store, job.folder, job.config.checkpoints, num_steps=0),
        Reporter(job, SINGLE_PROCESS, Launcher()),
    )
    with closing(saver):
        saver.submit(Checkpoint(loop, model=model.state_dict(), description=job.describe()), num_steps=1)
        saver.submit_evaluation(loop, evaluation.metrics_by_name[evaluation.main_metric])
        saver.wait()
        reporter.log_checkpoints(saver.completed())
    reporter.log_epoch(loop.history, evaluation)
    job.store.write_json(RunFiles(job.run).history, loop.history)
