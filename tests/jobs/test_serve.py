"""Run the service on Ray Serve, under load and while its model is exchanged."""

import contextlib
import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import torch
from prometheus_client.parser import text_string_to_metric_families

from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, save_checkpoint
from ast_model.config import ASTConfig
from ast_model.evaluation.predictions import Predictions
from ast_model.export import export_hugging_face
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.service.limits import Limits
from ast_model.tracking import delivery
from ast_model.tracking.registry import CHAMPION, REGISTERED
from ast_model.tracking.run import TrackedRun, start_run
from ast_model.tracking.served_model import log_served_model
from jobs.serve import COMMAND_LINE
from jobs.service.serve import current_version, read_token, running
from jobs.service.settings import ServeConfig
from pipeline.audio.decode import encode_flac
from pipeline.errors import ConfigError, InputError
from pipeline.store.storage import Store

NAMES = ("Speech", "Dog, barking", "Rain")
TIMEOUT_S = 120
NUM_CLIENTS = 8


def noise(seconds: float) -> bytes:
    values = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * 16_000))
    return encode_flac(values.astype(np.float32))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def register(store: Store, seed: int) -> tuple[TrackedRun, Tagger]:
    """Register a model from a separate run."""
    run = start_run(store, f"training {seed}", {})
    torch.manual_seed(seed)
    shape = ASTConfig(len(NAMES), num_frames=128, freq_stride=16, time_stride=16, width=48, depth=1, num_heads=3)
    labels = {"mids": NAMES, "names": NAMES}
    description = {"model": dataclasses.asdict(shape), "train": {}, "labels": labels, "mean": -5.0, "std": 4.0}
    checkpoint = Checkpoint(LoopState(1), AST(shape).state_dict(), description=description)
    name = save_checkpoint(store, f"runs/{seed}/checkpoints", checkpoint)
    random = np.random.default_rng(seed)
    targets, keys = random.random((60, len(NAMES))) < 0.3, np.array([f"clip_{number}" for number in range(60)])
    scores = Predictions(keys, np.array(NAMES), np.array(NAMES), random.random(targets.shape), targets, np.arange(3), 1)
    log_served_model(run, "best", store, name, scores)
    run.end("FINISHED")
    return run, Tagger.load(store.url(name))


@pytest.mark.rehearsal
@pytest.mark.usefixtures("ray")
def test_clients_share_batches_and_an_exchange_drops_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "QUEUES", tmp_path / "queues")
    store = Store(str(tmp_path / "store"))
    run, first = register(store, 1)
    run.client.set_registered_model_alias(REGISTERED, CHAMPION, "1")
    config = ServeConfig(
        f"models:/{REGISTERED}@{CHAMPION}",
        root=store.root,
        port=free_port(),
        poll_s=0.2,
        limits=Limits(max_requests=NUM_CLIENTS),
    )
    sound = noise(1)
    is_over = threading.Event()

    with running(config, "", current_version(config)) as address, ThreadPoolExecutor(4 * NUM_CLIENTS) as threads:

        def ask_until_over(_: int) -> list[tuple[int, str, float]]:
            answers = []
            with requests.Session() as session:
                while not is_over.is_set():
                    response = session.post(f"{address}/v1/tag?classes=Rain", data=sound, timeout=TIMEOUT_S)
                    found = response.json()
                    answers.append((response.status_code, found["version"], found["tags"][0]["score"]))
            return answers

        def version_now() -> str:
            return requests.get(f"{address}/healthz", timeout=TIMEOUT_S).json()["version"]

        clients = [threads.submit(ask_until_over, number) for number in range(NUM_CLIENTS)]
        try:
            assert version_now() == "1"
            _, second = register(store, 2)
            run.client.set_registered_model_alias(REGISTERED, CHAMPION, "2")
            deadline = time.monotonic() + TIMEOUT_S
            while version_now() != "2" and time.monotonic() < deadline:
                is_over.wait(0.1)
        finally:
            is_over.set()
        answers = list(itertools.chain.from_iterable(client.result() for client in clients))
        assert {status for status, _, _ in answers} == {200} and {version for _, version, _ in answers} == {"1", "2"}
        for version, tagger in {"1": first, "2": second}.items():
            scores = [score for _, answered_by, score in answers if answered_by == version]
            np.testing.assert_allclose(scores, dict(tagger.tag(sound))["Rain"], atol=1e-4)

        text = requests.get(f"{address}/metrics", timeout=TIMEOUT_S).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        windows = {sample.name: sample.value for sample in families["ast_batch_windows"].samples}
        assert windows["ast_batch_windows_sum"] / windows["ast_batch_windows_count"] > 1

        idle = [socket.create_connection(("127.0.0.1", config.port)) for _ in range(1_000)]
        with contextlib.ExitStack() as stack:
            for number, connection in enumerate(idle):
                stack.enter_context(connection)
                if number % 10 == 0:  # some say that they will send a body, and send the start of it
                    connection.sendall(b"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\nRIFF")
            assert requests.post(f"{address}/v1/tag", data=sound, timeout=TIMEOUT_S).ok

        long = noise(60)
        asked = [threads.submit(requests.post, f"{address}/v1/tag", data=long) for _ in range(4 * NUM_CLIENTS)]
        responses = [request.result() for request in asked]
        counts = Counter(response.status_code for response in responses)
        assert counts.keys() == {200, 429} and counts[200] >= NUM_CLIENTS
        assert all(response.headers["retry-after"] == "2" for response in responses if response.status_code == 429)
        assert requests.get(f"{address}/healthz", timeout=TIMEOUT_S).ok


@pytest.mark.rehearsal
@pytest.mark.process
def test_sigterm_ends_the_service_cleanly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = ASTConfig(len(NAMES), num_frames=128, freq_stride=16, time_stride=16, width=48, depth=1, num_heads=3)
    export_hugging_face(AST(shape), ModelMetadata(NAMES, -5, 4), tmp_path / "ast")
    root, port = Path(__file__).parents[2], free_port()
    command = [sys.executable, "jobs/serve.py", "--checkpoint", str(tmp_path / "ast"), "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as service:
        assert service.stdout is not None
        shown = b""
        while b"Ctrl-C ends" not in shown:
            line = service.stdout.readline()
            shown += line
            assert line, shown.decode()
        assert requests.post(f"http://127.0.0.1:{port}/v1/tag", data=noise(1), timeout=TIMEOUT_S).ok
        children = psutil.Process(service.pid).children(recursive=True)
        service.send_signal(signal.SIGTERM)
        rest, _ = service.communicate(timeout=TIMEOUT_S)
        assert service.returncode == 0 and b"Traceback" not in rest, rest.decode()
        assert psutil.wait_procs(children, timeout=TIMEOUT_S)[1] == []
    socket.create_server(("127.0.0.1", port)).close()


def test_addresses_other_than_loopback_need_a_token(tmp_path: Path) -> None:
    words = ["--checkpoint", "a-model", "--host", "0.0.0.0"]
    with pytest.raises(ConfigError, match=r"--host 0.* needs --token-file"):
        COMMAND_LINE.parse(words)
    file = tmp_path / "token"
    assert COMMAND_LINE.parse([*words, "--token-file", str(file)]).token_file == str(file)
    file.write_text("short\n")
    with pytest.raises(InputError, match="at least 16 characters"):
        read_token(str(file))
    file.write_text(f"{'x' * 20}\nand a remark\n")
    assert read_token(str(file)) == "x" * 20


def test_only_the_projects_registered_model_is_followed(tmp_path: Path) -> None:
    for name in ("models:/other@champion", f"models:/{REGISTERED}"):
        with pytest.raises(ConfigError, match=f"expected models:/{REGISTERED}@ALIAS"):
            current_version(ServeConfig(name, root=str(tmp_path)))
