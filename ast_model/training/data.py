"""The clips that one training reads, in the order of its draw plan, and a teacher's part in their targets.

Binary cross-entropy is linear in its targets. So a share of a teacher's scores in the targets is the same as that share
of a second loss against the teacher, and mixup mixes both as one.

Source: Schmid, Koutini and Widmer, "Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge Distillation",
ICASSP 2023 (stored ensemble scores).
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from ast_model.data.feed import feed
from ast_model.data.loader import Batch, BatchReader, open_reader
from ast_model.data.sampling import Draws, group_by_shard, num_steps_of, plan_epoch
from ast_model.distributed import World
from ast_model.teachers.store import Teachers
from ast_model.training.job import Job
from ast_model.training.step import micro_batches
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
            teachers = Teachers(snapshot, train_rows, config.teachers).open(config.cache)
            self.clips = DistillationBatchReader(self.clips, teachers, config.teacher_share)

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
    """Reads batches whose targets are partly the teachers' probabilities; clips without any learn from their labels."""

    def __init__(self, clips: BatchReader, teachers: Teachers, share: float):
        """teachers: of the clips, in their order. share: the teachers' part in the targets."""
        super().__init__(clips.reader, clips.rows, clips.targets, clips.num_frames, clips.features, clips.random_crop)
        self._teachers, self._share = teachers, share

    def _targets(self, positions: np.ndarray) -> np.ndarray:
        labels_BC = super()._targets(positions)
        taught_BC, is_untaught = self._teachers.read(positions)
        targets_BC = labels_BC * (1 - self._share) + self._share * taught_BC
        targets_BC[is_untaught] = labels_BC[is_untaught]
        return targets_BC
