"""The clips that one training reads, in the order of its plan of draws."""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from scipy import sparse

from ast_model.data.loader import Batch, BatchReader, open_reader
from ast_model.data.sampling import Draws, group_by_shard, num_steps_of, plan_epoch
from ast_model.distributed import World
from ast_model.training.job import Job
from ast_model.training.step import micro_batches
from ast_model.training.teacher import DistillationBatchReader, load_teacher
from pipeline.weights import class_balanced_weights

Reader = TypeVar("Reader", bound=BatchReader)


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
        self.clips = self._batch_reader(BatchReader, train_rows, targets)
        self.eval_clips = self._batch_reader(BatchReader, eval_rows, snapshot.targets(eval_rows))
        if config.teachers:
            self.clips = self._batch_reader(DistillationBatchReader, train_rows, targets)
            self.clips.teach(load_teacher(snapshot, train_rows, config), config.teacher_share)

    def _batch_reader(self, kind: type[Reader], rows: np.ndarray, targets: sparse.csr_array) -> Reader:
        reader = open_reader(self.job.snapshot, self.config.cache)
        return kind(reader, rows, targets, self.job.model.num_frames, self.config.features)

    def batches(self, epoch: int, steps: range, world: World) -> Iterator[Batch]:
        """Yield this rank's micro-batches of some steps of an epoch, read ahead."""
        return self.clips.stream(self._micro_draws(epoch, steps, world), self.config.num_reader_threads)

    def _micro_draws(self, epoch: int, steps: range, world: World) -> Iterator[Draws]:
        config = self.config
        seed = (self.job.snapshot.snapshot_id, config.seed, epoch)
        draws = plan_epoch(self.weights, self.num_draws, config.sampler, config.augment, seed)
        draws = draws[: self.num_steps * config.global_batch_size]
        if config.group_draws:
            shards = self.clips.reader.shards_of(self.clips.rows)
            draws = group_by_shard(draws, shards, config.group_draws, seed)
        self.clips.expect(draws[steps.start * config.global_batch_size :], config.group_draws > 0)
        for step in steps:
            for part in micro_batches(config, step, world):
                yield draws[part]
