"""Record the owning process of each run with heartbeats, so that runs of killed processes do not stay RUNNING."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mlflow.entities import RunStatus
from mlflow.tracking import MlflowClient

from ast_model.tracking.tags import ENDED_TAG, OWNER_TAG
from pipeline.store.process import Owner, machine, this_process

log = logging.getLogger(__name__)

BEAT_EVERY_S = 20.0
DEAD_AFTER_S = 120.0
"""Age of the last heartbeat at which a process on another machine counts as dead.

This is six heartbeats. A restarting server or a clock that is a minute off therefore does not end a live run.
"""


@dataclass(frozen=True)
class RunOwner:
    """The process that owns a run, and its last heartbeat."""

    process: Owner
    seen_at: float
    """Time of the last heartbeat, in seconds since 1970."""

    @property
    def is_this_process(self) -> bool:
        return self.process == this_process()

    @property
    def is_alive(self) -> bool:
        """True if the process is running. On other machines the age of the heartbeat decides."""
        if self.process.machine == machine():
            return not self.process.is_dead
        return time.time() - self.seen_at < DEAD_AFTER_S

    def __str__(self) -> str:
        seen = time.strftime("%H:%M:%S", time.localtime(self.seen_at))
        return f"process {self.process.pid} on {self.process.machine}, last seen at {seen}"


def owner_tag() -> dict[str, str]:
    """Return the tag that names this process as the owner, with the current time as its heartbeat."""
    return {OWNER_TAG: json.dumps({**asdict(this_process()), "seen_at": time.time()})}


def read_owner(tags: Mapping[str, str]) -> RunOwner | None:
    """Return the owner of a run, or None for a run that another program created."""
    if OWNER_TAG not in tags:
        return None
    fields = json.loads(tags[OWNER_TAG])
    return RunOwner(seen_at=fields.pop("seen_at"), process=Owner(**fields))


def close_dead_runs(client: MlflowClient, experiment_id: str) -> None:
    """Set the RUNNING runs of killed processes to FAILED. Skips runs without an owner, which other programs created."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        owner = read_owner(run.data.tags)
        if owner is not None and not owner.is_alive:
            client.set_tag(run.info.run_id, ENDED_TAG, "its process was killed; a later run found it")
            # End at the last heartbeat: a run that died at night must not appear to have taken until the morning.
            failed = RunStatus.to_string(RunStatus.FAILED)
            client.set_terminated(run.info.run_id, failed, end_time=int(owner.seen_at * 1000))
            log.warning("set run %s to FAILED: its process was killed", run.info.run_name)


class Heartbeat:
    """A thread that updates a run's owner tag until it is stopped."""

    def __init__(self, client: MlflowClient, run_id: str):
        self._client, self._run_id = client, run_id
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {run_id}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(BEAT_EVERY_S)

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_EVERY_S):
            try:
                self._client.set_tag(self._run_id, OWNER_TAG, owner_tag()[OWNER_TAG])
            except Exception as error:  # any error of the client: a missed heartbeat must not end the training
                log.debug("heartbeat failed: %s", error)
