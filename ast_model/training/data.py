"""Training batches in the order of the plan, with the teachers' scores in their targets.

Binary cross-entropy is linear in its targets. Mixing a share of the teachers' scores into the targets therefore equals
adding a second loss against the teachers, weighted by that share, and mixup mixes both at once.

Source: Schmid, Koutini and Widmer, "Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge Distillation",
ICASSP 2023 (stored ensemble scores).
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from scipy import sparse

from ast_model.data.feed import feed
from ast_model.data.loader import Batch, BatchReader, open_reader
from ast_model.data.sampling import Draws
from ast_model.distributed import World
from ast_model.training.plan import TrainingPlan
from ast_model.training.step import micro_batches


class TeacherScores(Protocol):
    """Teachers' probabilities for the training clips."""

    def read(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean probabilities (n, C) of clips, by position, and a mask (n,) of clips without scores."""
        ...


class TrainingData:
    """Readers of the training clips and the evaluation clips."""

    def __init__(self, plan: TrainingPlan, num_frames: int, teachers: TeacherScores | None = None):
        """num_frames: length of the model's input. teachers: scores of the training clips, in the order of the plan."""
        if bool(plan.config.teachers) != (teachers is not None):
            raise ValueError(f"expected scores of the teachers {plan.config.teachers}, found {teachers}")
        self.plan, self.config, self._num_frames = plan, plan.config, num_frames
        self.clips = self._batch_reader(plan.train_rows, plan.targets)
        self.eval_clips = self._batch_reader(plan.eval_rows, plan.snapshot.targets(plan.eval_rows))
        if teachers is not None:
            self.clips = DistillationBatchReader(self.clips, teachers, self.config.teacher_share)

    def _batch_reader(self, rows: np.ndarray, targets: sparse.csr_array) -> BatchReader:
        config = self.config
        reader = open_reader(self.plan.snapshot, config.cache)
        return BatchReader(reader, rows, targets, self._num_frames, config.features, config.augment.random_crop)

    def batches(self, epoch: int, steps: range, world: World) -> Iterator[Batch]:
        """Yield this rank's micro-batches for some steps of an epoch, prefetched to its device."""
        draws, is_gpu = self._micro_draws(epoch, steps, world), world.device.type == "cuda"
        return feed(self.clips.prefetch(draws, self.config.num_reader_threads, pinned=is_gpu), world.device)

    def read_step(self, epoch: int, step: int, world: World) -> Iterator[Batch]:
        """Read this rank's micro-batches of one step again, independently of the prefetched batches."""
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
        return self.plan.draw_epoch(epoch, self.clips.reader.shards_of(self.clips.rows))


class DistillationBatchReader(BatchReader):
    """Reads batches with the teachers' probabilities mixed into the targets. Clips without scores keep their labels."""

    def __init__(self, clips: BatchReader, teachers: TeacherScores, share: float):
        """teachers: scores of `clips`, in their order. share: the teachers' share of the targets."""
        super().__init__(clips.reader, clips.rows, clips.targets, clips.num_frames, clips.features, clips.random_crop)
        self._teachers, self._share = teachers, share

    def _targets(self, positions: np.ndarray) -> np.ndarray:
        labels_BC = super()._targets(positions)
        taught_BC, is_untaught = self._teachers.read(positions)
        targets_BC = labels_BC * (1 - self._share) + self._share * taught_BC
        targets_BC[is_untaught] = labels_BC[is_untaught]
        return targets_BC
