import http.server
import json
import math
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Metric

from ast_model.tracking import delivery
from ast_model.tracking.heartbeat import owner_tag
from ast_model.tracking.run import TrackedRun, continue_run, start_run
from ast_model.tracking.server import check_server
from ast_model.tracking.tags import OWNER_TAG
from pipeline.errors import TrackingError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

ROOT = Path(__file__).parents[3]


def rows(store: Store, query: str) -> list[tuple]:
    with sqlite3.connect(store.path("mlflow.db")) as database:
        found = database.execute(query).fetchall()
    database.close()
    return found


def steps(store: Store, key: str) -> list[int]:
    return [step for (step,) in rows(store, f"select step from metrics where key = '{key}' order by step")]


@pytest.mark.process
def test_resumed_training_continues_its_run_without_duplicate_steps(store: Store, tmp_path: Path) -> None:
    code = (
        "import os, signal, pathlib; from pipeline.store.storage import Store\n"
        "from ast_model.tracking import delivery, run as tracking\n"
        f"delivery.QUEUES = pathlib.Path({str(tmp_path / 'queues')!r})\n"
        f"run = tracking.start_run(Store({store.root!r}), 'a training', {{'preset': 'demo'}})\n"
        "for step in range(1, 31): run.log_metrics({'train/loss': 1 / step}, step)\n"
        "run.close()\n"
        "for step in range(31, 41): run.log_metrics({'train/loss': 1 / step}, step)\n"  # may or may not be delivered
        "print(run.run_id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert killed.returncode < 0, killed.stderr
    assert rows(store, "select status from runs") == [("RUNNING",)]

    run = continue_run(store, killed.stdout.strip())
    assert rows(store, "select status from runs") == [("RUNNING",)]
    for step in range(21, 61):  # from a checkpoint at step 20
        run.log_metrics({"train/loss": 1 / step}, step)
    run.end("FINISHED")
    assert rows(store, "select status from runs") == [("FINISHED",)]
    assert steps(store, "train/loss") == list(range(1, 61))


def test_events_of_a_lost_machine_are_delivered_after_later_steps(store: Store) -> None:
    run = start_run(store, "x", {})
    run.log_metrics({"eval/mAP": 0.1}, 1)
    run.close()
    # Another machine queued epoch 2 and the end of the run, and was lost before this one continued with epoch 3.
    lost_ms = int(time.time() * 1000)
    lost_events = [
        {"type": "metrics", "step": 2, "values": {"eval/mAP": 0.2}, "time_ms": lost_ms},
        {"type": "end", "status": "KILLED", "time_ms": lost_ms},
    ]
    run.log_tags(owner_tag())
    run.log_metrics({"eval/mAP": 0.3}, 3)
    run.end("FINISHED")
    queue = delivery.queue_folder(run.uri) / f"{run.run_id}.jsonl"
    queue.write_text("".join(f"{json.dumps(event)}\n" for event in lost_events))
    delivery.deliver_leftover_events(run.client, run.uri)
    assert steps(store, "eval/mAP") == [1, 2, 3]
    assert rows(store, "select status from runs") == [("FINISHED",)]


def test_repeated_and_partly_delivered_steps_are_stored_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(store, "x", {})
    run.close()
    send = run.client.log_batch
    monkeypatch.setattr(delivery, "MAX_METRICS_PER_BATCH", 2)
    deliver = delivery.Delivery(run.client, run.run_id)
    events = [{"type": "metrics", "step": n % 4, "values": {"train/loss": 1.0}, "time_ms": 1} for n in range(8)]

    def fail_later(run_id: str, metrics: Sequence[Metric]) -> None:
        if metrics[0].step >= 2:
            raise OSError("connection lost")
        send(run_id, metrics)

    monkeypatch.setattr(run.client, "log_batch", fail_later)
    with pytest.raises(OSError, match="connection lost"):
        deliver(events)
    monkeypatch.setattr(run.client, "log_batch", send)
    deliver(events)
    assert steps(store, "train/loss") == [0, 1, 2, 3]
    run.end("FINISHED")


@pytest.mark.slow
def test_run_of_a_killed_process_becomes_failed(store: Store) -> None:
    dead, other = start_run(store, "dead", {}), start_run(store, "alive", {})
    assert dead._heartbeat is not None
    dead._heartbeat.stop()
    dead.log_tags({OWNER_TAG: '{"machine": "elsewhere", "pid": 1, "started": 0.0, "seen_at": 1000.0}'})
    start_run(store, "next", {}).end("FINISHED")
    assert dict(rows(store, "select name, status from runs")) == {
        "dead": "FAILED",
        "alive": "RUNNING",
        "next": "FINISHED",
    }
    assert rows(store, "select end_time from runs where name = 'dead'") == [(1_000_000,)]
    other.end("KILLED")


def test_run_owned_by_a_live_process_is_refused(store: Store) -> None:
    run = start_run(store, "busy", {})
    owner = {"machine": "elsewhere", "pid": 1, "started": 0.0, "seen_at": time.time()}
    run.log_tags({OWNER_TAG: json.dumps(owner)})
    with pytest.raises(TrackingError, match=r"expected run busy to have no live process, found process 1 on elsewhere"):
        continue_run(store, run.run_id)
    run.end("KILLED")


def test_run_of_another_experiment_is_refused(store: Store) -> None:
    run = start_run(store, "x", {}, experiment="others")
    run.end("FINISHED")
    with pytest.raises(TrackingError, match="found it in 'others'"):
        continue_run(store, run.run_id)
    with pytest.raises(TrackingError, match="can't continue run 0123"):
        continue_run(store, "0123")


def test_deleted_experiment_is_reported_with_the_restore_command(store: Store) -> None:
    run = start_run(store, "x", {})
    run.end("FINISHED")
    run.client.delete_experiment(run.client.get_run(run.run_id).info.experiment_id)
    with pytest.raises(TrackingError, match=r"found it deleted. Restore it: .*experiments restore --experiment-id 1"):
        start_run(store, "y", {})


def test_checkpoint_becomes_one_model_with_metrics_and_dataset(store: Store, snapshot: Snapshot) -> None:
    run = start_run(store, "x", {})
    run.log_data(snapshot, "training")
    for _ in range(2):  # as a resumed training may do
        run.log_checkpoint("epoch-0001", "/store/epoch-0001", {"epoch": 1.0, "eval/mAP": 0.25})
    run.end("FINISHED")
    experiment = run.client.get_run(run.run_id).info.experiment_id
    (model,) = run.client.search_logged_models([experiment])
    assert model.tags["checkpoint"] == "/store/epoch-0001"
    assert [(m.key, m.value, m.step, m.dataset_name, m.dataset_digest) for m in model.metrics or []] == [
        ("eval/mAP", 0.25, 1, "store", snapshot.snapshot_id)
    ]
    inputs = run.client.get_run(run.run_id).inputs
    (data,) = inputs.dataset_inputs if inputs else []
    assert mlflow.data.get_source(data).uri == snapshot.store.url(f"snapshots/{snapshot.snapshot_id}")  # pyright: ignore
    assert steps(store, "eval/mAP") == [1]


def test_child_run_is_found_under_its_parent(store: Store) -> None:
    parent = start_run(store, "five folds", {})
    child = start_run(store, "fold 1", {}, parent=parent)
    found = child.client.search_runs(
        [child.client.get_run(child.run_id).info.experiment_id], f"tags.mlflow.parentRunId = '{parent.run_id}'"
    )
    assert [run.info.run_name for run in found] == ["fold 1"]
    child.end("FINISHED")
    parent.end("FINISHED")


def test_changed_parameters_become_tags_on_resume(store: Store) -> None:
    run = start_run(store, "x", {})
    run.log_params({"train.num_epochs": "5"})
    run.log_params({"train.num_epochs": "8", "train.seed": "0"})
    run.log_late_params({"device.attention": "cudnn"})
    run.log_late_params({"device.attention": "flash"})
    run.close()
    data = run.client.get_run(run.run_id).data
    assert data.params == {"train.num_epochs": "5", "train.seed": "0", "device.attention": "cudnn"}
    assert (data.tags["resumed.train.num_epochs"], data.tags["resumed.device.attention"]) == ("8", "flash")
    run.end("FINISHED")


def test_non_finite_metrics_are_not_logged(store: Store) -> None:
    run = start_run(store, "x", {})
    run.log_metrics({"eval/mAP": 1.0, "eval/d_prime": math.inf, "eval/auc": math.nan}, 1)
    run.end("FINISHED")
    assert rows(store, "select distinct key from metrics where key like 'eval/%'") == [("eval/mAP",)]


@pytest.fixture
def other_server() -> Iterator[str]:
    """Serve HTTP without MLflow."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_server_other_than_mlflow_is_refused(other_server: str) -> None:
    with pytest.raises(TrackingError, match=r"expected an MLflow server at .*, found HTTP 404"):
        check_server(other_server)
    with pytest.raises(TrackingError, match=r"found .*refused"):
        check_server("http://127.0.0.1:1")


def test_rejected_metric_name_does_not_block_later_metrics(store: Store, tmp_path: Path) -> None:
    run: TrackedRun = start_run(store, "x", {})
    run.log_metrics({"eval/Speech, (male) & female": 1.0}, 1)
    assert run._queue is not None and run._queue.flush(20)
    run.log_metrics({"train/loss": 1.0}, 1)
    run.end("FINISHED")
    assert steps(store, "train/loss") == [1]
    assert len(list((tmp_path / "queues").rglob("*.refused"))) == 1
