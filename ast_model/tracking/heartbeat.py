"""Heartbeats of runs: who works on a run, so that one whose process was killed does not stay RUNNING for ever."""

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
"""Six beats: a server that restarts, or a clock that is a minute off, kills no run. For processes of other machines."""


@dataclass(frozen=True)
class RunOwner:
    """The process that works on a run, and the time of its last heartbeat in seconds since 1970."""

    process: Owner
    seen_at: float

    @property
    def is_this_process(self) -> bool:
        return self.process == this_process()

    @property
    def is_alive(self) -> bool:
        """Whether the process is running; one of another machine can't be looked for, so its heartbeat counts."""
        if self.process.machine == machine():
            return not self.process.is_dead
        return time.time() - self.seen_at < DEAD_AFTER_S

    def __str__(self) -> str:
        seen = time.strftime("%H:%M:%S", time.localtime(self.seen_at))
        return f"process {self.process.pid} of {self.process.machine}, seen at {seen}"


def owner_tag() -> dict[str, str]:
    """Return the tag that names this process as a run's owner, alive now."""
    return {OWNER_TAG: json.dumps({**asdict(this_process()), "seen_at": time.time()})}


def read_owner(tags: Mapping[str, str]) -> RunOwner | None:
    """Return a run's owner; None for runs that others' programs made."""
    if OWNER_TAG not in tags:
        return None
    fields = json.loads(tags[OWNER_TAG])
    return RunOwner(seen_at=fields.pop("seen_at"), process=Owner(**fields))


def close_dead_runs(client: MlflowClient, experiment_id: str) -> None:
    """Set runs to FAILED whose process was killed. Runs without an owner, which others made, are left alone."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        owner = read_owner(run.data.tags)
        if owner is not None and not owner.is_alive:
            client.set_tag(run.info.run_id, ENDED_TAG, "its process was killed; found at the start of another run")
            # The end is the last heartbeat, not now: a run that died at night did not take until the morning.
            failed = RunStatus.to_string(RunStatus.FAILED)
            client.set_terminated(run.info.run_id, failed, end_time=int(owner.seen_at * 1000))
            log.warning("run %s was left RUNNING by a process that is gone; it is FAILED now", run.info.run_name)


class Heartbeat:
    """A thread that renews a run's owner tag until it is stopped."""

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
            except Exception as error:  # whatever a lost server raises: a training must not die of its heartbeat
                log.debug("no heartbeat: %s", error)
