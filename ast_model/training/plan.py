"""The clips, draws and steps of a training run, derived from its snapshot and settings."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from ast_model.config import TrainConfig
from ast_model.data.sampling import Draws, group_by_shard, num_steps_of, plan_epoch
from ast_model.evaluation.clip_lists import Coverage, find_listed_clips
from pipeline.snapshots.snapshot import Snapshot
from pipeline.weights import class_balanced_weights


@dataclass(frozen=True)
class TrainingPlan:
    """Rows, targets and steps of a training run. Each is computed on first use.

    The plan depends only on the snapshot and the settings, so it is the same on every rank and for any number of ranks.
    """

    snapshot: Snapshot
    config: TrainConfig

    @cached_property
    def train_rows(self) -> np.ndarray:
        """Rows (N,) of the training clips in the snapshot's index. Raises NoClipsError if there are none."""
        return self.snapshot.rows_of(self.config.train_splits)

    @cached_property
    def eval_rows(self) -> np.ndarray:
        """Rows of the evaluation clips in the snapshot's index. Raises NoClipsError if there are none."""
        return self._listed_clips[0]

    @property
    def eval_coverage(self) -> Coverage:
        """Number of evaluation clips, compared with the number in `--train.eval-clips`."""
        rows, num_listed = self._listed_clips
        return Coverage(self.config.eval_clips, num_listed, len(rows))

    @cached_property
    def _listed_clips(self) -> tuple[np.ndarray, int]:
        return find_listed_clips(self.snapshot, self.config.eval_split, self.config.eval_clips)

    @cached_property
    def targets(self) -> sparse.csr_array:
        """Multi-hot labels (N, C) of the training clips."""
        return self.snapshot.targets(self.train_rows)

    @cached_property
    def weights(self) -> np.ndarray:
        """Sampling weights (N,) of the training clips."""
        return class_balanced_weights(self.targets, self.config.weight_count_offset)

    @property
    def num_draws(self) -> int:
        """Number of samples drawn per epoch, including an incomplete last batch."""
        return self.config.draws_per_epoch or len(self.train_rows)

    @property
    def num_steps(self) -> int:
        """Number of steps in an epoch. Raises NoClipsError if the draws fill no batch."""
        return num_steps_of(self.num_draws, self.config.global_batch_size)

    @property
    def total_steps(self) -> int:
        """Number of steps in the whole run."""
        return self.config.num_epochs * self.num_steps

    def draw_epoch(self, epoch: int, shard_of_clip: np.ndarray) -> Draws:
        """Draw the clips of an epoch in order, with mixup partners and random numbers for the augmentation.

        shard_of_clip: (N,) shard of each training clip, for `group_draws`.
        """
        config = self.config
        # Every rank draws the whole epoch, in milliseconds. So the plan is the same for any number of ranks, and a
        # resumed run needs no sampler state, only the number of its next step.
        seed = (self.snapshot.snapshot_id, config.seed, epoch)
        draws = plan_epoch(self.weights, self.num_draws, config.sampler, config.augment, seed)
        draws = draws[: self.num_steps * config.global_batch_size]
        return group_by_shard(draws, shard_of_clip, config.group_draws, seed) if config.group_draws else draws
