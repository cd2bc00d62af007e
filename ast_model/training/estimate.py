"""Estimate when a training run will finish, from its first steps."""

import logging
import time

from ast_model.checkpoints.checkpoint import LoopState
from ast_model.config import ASTConfig
from ast_model.distributed import World
from ast_model.flops import FORWARDS_PER_STEP, PEAK_FLOPS, training_flops
from ast_model.training.plan import TrainingPlan
from pipeline.progress import format_duration

log = logging.getLogger(__name__)

MEASURED_S = 3.0
"""Minimum duration of the measured steps, long enough that a GPU's queue of launched steps does not hide their cost."""
WORTH_SAVING_S = 60.0
"""Minimum remaining time for which a faster device is recommended."""
H200_FLOPS = 0.38 * PEAK_FLOPS["H200"]
"""Measured training speed on an H200, in operations per second."""


class EndEstimate:
    """Logs the estimated end and the remaining samples once, after the first seconds of training."""

    def __init__(self, plan: TrainingPlan, model: ASTConfig, world: World):
        self._plan, self._model, self._world = plan, model, world
        self._last_s, self._elapsed_s, self._num_measured = 0.0, 0.0, 0
        self._is_logged = not world.is_main

    def count_step(self, loop: LoopState) -> None:
        """Count a step that `loop` already includes."""
        if self._is_logged:
            return
        now_s, last_s = time.perf_counter(), self._last_s
        self._last_s = now_s
        # Skip the first step of the run, which allocates and compiles, and the first step of each epoch, which follows
        # an evaluation.
        if not last_s or loop.step == 1:
            return
        self._elapsed_s += now_s - last_s
        self._num_measured += 1
        if self._elapsed_s >= MEASURED_S:
            self._is_logged = True
            self._log(loop, self._elapsed_s / self._num_measured)

    def _log(self, loop: LoopState, step_s: float) -> None:
        plan, config, world = self._plan, self._plan.config, self._world
        num_samples = (plan.total_steps - loop.epoch * plan.num_steps - loop.step) * config.global_batch_size
        num_evals = config.num_epochs - loop.epoch + (config.average_last_epochs > 1)
        num_eval = len(plan.eval_rows)
        # An evaluation runs only forward passes, while a training step also runs backward passes.
        work = num_samples + num_evals * num_eval / FORWARDS_PER_STEP
        sample_s = step_s / config.global_batch_size
        seconds, where = work * sample_s, "GPU" if world.device.type == "cuda" else "CPU"
        log.info(
            "%d samples left in %d epochs, %.3g ms each on %d %s workers: about %s with %d evaluations of %d clips,"
            " until %s (measured on %d steps)",
            *(num_samples, config.num_epochs - loop.epoch, 1000 * sample_s, world.size, where),
            *(format_duration(seconds), num_evals, num_eval),
            *(time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds)), self._num_measured),
        )
        if where == "CPU" and seconds > WORTH_SAVING_S:
            gpu_s = work * training_flops(self._model) / H200_FLOPS
            log.info("faster: a GPU (an H200 would compute for %s)", format_duration(max(1.0, gpu_s)))
