"""Which runs are being worked on. A run that nobody works on any more doesn't stay RUNNING."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict

from mlflow.entities import RunStatus
from mlflow.tracking import MlflowClient

from pipeline.store.process import Owner, machine, this_process

log = logging.getLogger(__name__)

PROCESS_TAG, BEAT_TAG, ENDED_TAG = "owner.process", "owner.seen_at", "owner.ended"
BEAT_EVERY_S = 20.0
DEAD_AFTER_S = 120.0
"""Without a sign of life, for processes that can't be looked for on this machine."""


def sign_of_life() -> dict[str, str]:
    """Return the tags that say who works on a run."""
    return {PROCESS_TAG: json.dumps(asdict(this_process())), BEAT_TAG: str(time.time())}


def is_ours(tags: Mapping[str, str]) -> bool:
    """Whether this very process works on the run of these tags."""
    return tags.get(PROCESS_TAG) == sign_of_life()[PROCESS_TAG]


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether someone still works on the run of these tags: the process is there, or was seen a short while ago."""
    owner = Owner(**json.loads(tags[PROCESS_TAG]))
    if owner.machine == machine():
        return not owner.is_dead
    return time.time() - float(tags[BEAT_TAG]) < DEAD_AFTER_S


def close_dead_runs(client: MlflowClient, experiment_id: str) -> None:
    """Set runs to FAILED whose process was killed. Runs that others made, without a sign of life, are left alone."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if PROCESS_TAG in tags and not is_alive(tags):
            seen_ms = int(float(tags[BEAT_TAG]) * 1000)
            client.set_tag(run.info.run_id, ENDED_TAG, "its process was killed; found at the start of another run")
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.FAILED), end_time=seen_ms)
            log.warning("run %s was left RUNNING by a process that is gone; it is FAILED now", run.info.run_name)


class Heartbeat:
    """Says now and then, from a thread, that a run is worked on."""

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
                self._client.set_tag(self._run_id, BEAT_TAG, str(time.time()))
            except Exception as error:  # the server is away: the next beat tells
                log.debug("no heartbeat: %s", error)
