"""The clips that one training reads, in the order of its draw plan, and a teacher's part in their targets.

Binary cross-entropy is linear in its targets. So a share of a teacher's scores in the targets is the same as that share
of a second loss against the teacher, and mixup mixes both as one.

Source: Schmid, Koutini and Widmer, "Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge Distillation",
ICASSP 2023 (stored ensemble scores).
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from ast_model.config import TrainConfig
from ast_model.data.feed import feed
from ast_model.data.loader import Batch, BatchReader, open_reader
from ast_model.data.sampling import Draws, group_by_shard, num_steps_of, plan_epoch
from ast_model.distributed import World
from ast_model.evaluation.predictions import load_predictions
from ast_model.training.job import Job
from ast_model.training.step import micro_batches
from pipeline.errors import MismatchError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.weights import class_balanced_weights


class TrainingData:
    """Training and evaluation clips of a job, and its draws."""

    def __init__(self, job: Job):
        snapshot, config = job.snapshot, job.config
        self.job, self.config = job, config
        train_rows, eval_rows = snapshot.rows_of(config.train_splits), snapshot.rows_of((config.eval_split,))
        targets = snapshot.targets(train_rows)
        self.weights = class_balanced_weights(targets, config.weight_count_offset)
        self.num_draws = config.draws_per_epoch or len(train_rows)
        self.num_steps = num_steps_of(self.num_draws, config.global_batch_size)
        self.clips = self._batch_reader(train_rows, targets)
        self.eval_clips = self._batch_reader(eval_rows, snapshot.targets(eval_rows))
        if config.teachers:
            scores = load_teacher(snapshot, train_rows, config)
            self.clips = DistillationBatchReader(self.clips, scores, config.teacher_share)

    def _batch_reader(self, rows: np.ndarray, targets: sparse.csr_array) -> BatchReader:
        reader = open_reader(self.job.snapshot, self.config.cache)
        num_frames, random_crop = self.job.model.num_frames, self.config.augment.random_crop
        return BatchReader(reader, rows, targets, num_frames, self.config.features, random_crop)

    def batches(self, epoch: int, steps: range, world: World) -> Iterator[Batch]:
        """Yield this rank's micro-batches of some steps of an epoch, prefetched to its device."""
        draws, is_gpu = self._micro_draws(epoch, steps, world), world.device.type == "cuda"
        return feed(self.clips.prefetch(draws, self.config.num_reader_threads, pinned=is_gpu), world.device)

    def read_step(self, epoch: int, step: int, world: World) -> Iterator[Batch]:
        """Read this rank's micro-batches of one step, beside those that are prefetched."""
        draws = self._draws(epoch)
        for part in micro_batches(self.config, step, world):
            yield self.clips.read_draws(draws[part])

    def _micro_draws(self, epoch: int, steps: range, world: World) -> Iterator[Draws]:
        config, draws = self.config, self._draws(epoch)
        self.clips.set_order(draws[steps.start * config.global_batch_size :], config.group_draws > 0)
        for step in steps:
            for part in micro_batches(config, step, world):
                yield draws[part]

    def _draws(self, epoch: int) -> Draws:
        config = self.config
        # The whole epoch is drawn on each rank, in milliseconds: the plan is then the same for any number of ranks, and
        # a resume needs no state of a sampler, only the number of the step.
        seed = (self.job.snapshot.snapshot_id, config.seed, epoch)
        draws = plan_epoch(self.weights, self.num_draws, config.sampler, config.augment, seed)
        draws = draws[: self.num_steps * config.global_batch_size]
        if config.group_draws:
            shards = self.clips.reader.shards_of(self.clips.rows)
            draws = group_by_shard(draws, shards, config.group_draws, seed)
        return draws


class DistillationBatchReader(BatchReader):
    """Reads batches whose targets are partly a teacher's scores."""

    def __init__(self, clips: BatchReader, scores: np.ndarray, share: float):
        """scores: (N, C) of the clips, in their order. share: the teacher's part in the targets."""
        super().__init__(clips.reader, clips.rows, clips.targets, clips.num_frames, clips.features, clips.random_crop)
        self._scores, self._share = scores, share

    def _targets(self, positions: np.ndarray) -> np.ndarray:
        targets_BC = super()._targets(positions) * (1 - self._share)
        return targets_BC + self._share * self._scores[positions].astype(np.float32)


def load_teacher(snapshot: Snapshot, rows: np.ndarray, config: TrainConfig) -> np.ndarray:
    """Return the teachers' mean scores (len(rows), C) float16 of some clips. A file may hold those of one split.

    Raises MismatchError if a teacher has other classes, or not all clips have scores of as many.
    """
    keys = np.asarray(snapshot.index["key"].take(rows).to_pylist())
    mean = np.zeros((len(keys), len(snapshot.labels)), np.float32)
    counts = np.zeros(len(keys), int)
    for name in config.teachers:
        predictions = load_predictions(snapshot.store, name)
        if list(predictions.mids) != list(snapshot.labels.mids):
            where = snapshot.store.url(name)
            raise MismatchError(
                f"expected in {where} the {len(snapshot.labels)} classes of the snapshot, found different classes"
            )
        _, ours, theirs = np.intersect1d(keys, predictions.keys, assume_unique=True, return_indices=True)
        mean[ours] += predictions.scores[theirs]
        counts[ours] += 1
    if counts.min() != counts.max() or not counts.min():
        least = keys[counts.argmin()]
        raise MismatchError(
            f"expected in {', '.join(config.teachers)} scores of all {len(keys)} training clips, by as many teachers"
            f" each, found {counts.min()} to {counts.max()}; {least} has the fewest: evaluate each teacher on each of"
            " the training splits of this snapshot"
        )
    return (mean / counts[:, None]).astype(np.float16)
