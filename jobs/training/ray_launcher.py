"""Connect the ranks to the driver and to Ray Train for messages, preemption and reports."""

import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint
from ray.train.v2.api.report_config import CheckpointUploadMode

from ast_model.distributed import World
from ast_model.training.job import Launcher
from pipeline.cluster.metrics import gauges
from pipeline.errors import AudioTaggingError
from pipeline.store.layout import RUNS

ASK_EVERY_S = 1.0


@ray.remote(num_cpus=0)
class DriverMailbox:
    """An actor for messages between driver and workers: stop requests, attempts, and errors that need a person."""

    def __init__(self) -> None:
        self._is_stopping = False
        self._num_attempts = 0
        self._error: AudioTaggingError | None = None

    def ask_to_stop(self) -> None:
        self._is_stopping = True

    def is_stopping(self) -> bool:
        return self._is_stopping

    def count_attempt(self) -> None:
        self._num_attempts += 1

    def num_attempts(self) -> int:
        return self._num_attempts

    def post_error(self, error: AudioTaggingError) -> None:
        self._error = error

    def error(self) -> AudioTaggingError | None:
        return self._error


class RayLauncher(Launcher):
    """Receives stop requests from the driver and announcements of preempted nodes from Ray."""

    def __init__(self, mailbox: Any, world: World, is_watching: bool):
        self.mailbox, self.world, self.is_watching = mailbox, world, is_watching
        self._answer: ray.ObjectRef | None = None
        self._asked, self._known_preemption = 0.0, None

    def is_stopping(self) -> bool:
        """Return the latest answer of the mailbox, without waiting. Only the main rank polls it."""
        if not self.world.is_main:
            return False
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            answer, self._answer = self._answer, None
            return ray.get(answer)
        if self._answer is None and time.monotonic() - self._asked > ASK_EVERY_S:
            self._asked, self._answer = time.monotonic(), self.mailbox.is_stopping.remote()
        return False

    def preemption_imminent(self) -> bool:
        if not self.is_watching:
            return False
        preemption = ray.train.get_preemption_info()
        is_new = preemption is not None and preemption != self._known_preemption
        self._known_preemption = preemption
        return is_new

    def report_steps(self, metrics: Mapping[str, float]) -> None:
        self._show(metrics)

    def _show(self, metrics: Mapping[str, float]) -> None:
        """Publish metrics on Ray's Prometheus endpoint. `eval/mAP` becomes `ray_audioset_eval_map`."""
        run = ray.train.get_context().get_experiment_name()
        for name, value in metrics.items():
            gauges.set(name.replace("/", "_").lower(), value, run=run)

    def report_epoch(self, metrics: Mapping[str, float], checkpoint: str) -> None:
        """Report an epoch to Ray Train with the checkpoint that is already in the store. Uploads nothing."""
        if self.world.is_main:
            # The epoch's number comes last, so that a scrape with this number has the epoch's other metrics.
            self._show({name: metrics[name] for name in sorted(metrics, key="epoch".__eq__)})
        storage: Any = ray.train.get_context().get_storage()
        # Ray's storage path is the store's folder `runs`, so checkpoint paths are relative to it.
        path = f"{storage.storage_fs_path}/{checkpoint.removeprefix(f'{RUNS}/')}"
        ray.train.report(
            dict(metrics),
            checkpoint=Checkpoint(path, storage.storage_filesystem) if self.world.is_main else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )
