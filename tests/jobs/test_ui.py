"""Run `jobs/ui.py` on a moved store, with a real server."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from ast_model.tracking import delivery
from ast_model.tracking.run import start_run
from pipeline.store.storage import Store

ROOT = Path(__file__).parents[2]


@pytest.mark.process
def test_printed_page_shows_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(delivery, "QUEUES", tmp_path / "queues")
    run = start_run(Store(str(tmp_path / "old")), "a training", {})
    (tmp_path / "picture.txt").write_text("a picture")
    run.client.log_artifact(run.run_id, str(tmp_path / "picture.txt"))
    run.end("FINISHED")
    (tmp_path / "old").rename(tmp_path / "new")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "jobs/ui.py", "--root", str(tmp_path / "new"), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ui:
        try:
            assert ui.stdout is not None
            lines = map(re.compile(r"(http://127\S+?)(?:/#/experiments/(\d+)/runs\S*)?$").search, ui.stdout)
            address, experiment_id = next(found.groups() for found in lines if found)
            assert experiment_id, "the first printed address is the page of the trainings"
            search = requests.post(f"{address}/api/2.0/mlflow/runs/search", json={"experiment_ids": [experiment_id]})
            assert [each["info"]["run_name"] for each in search.json()["runs"]] == ["a training"]
            picture = requests.get(f"{address}/get-artifact", {"run_id": run.run_id, "path": "picture.txt"})
            assert picture.text == "a picture"
        finally:
            ui.send_signal(signal.SIGTERM)
        assert address not in ui.stdout.read(), "no other address follows"
    socket.create_server(("127.0.0.1", port)).close()  # the port is free, so the server ended with the command
