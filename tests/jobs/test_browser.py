"""MLflow's own pages, in a real browser, of two small real trainings on a real server."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from ast_model.config import AugmentConfig, TrainConfig
from ast_model.job import Watch
from ast_model.model import ASTConfig
from ast_model.tracking import start_run
from ast_model.tracking_comparison import find_run
from ast_model.tracking_registry import REGISTERED, champion, versions
from ast_model.tracking_server import open_client
from ast_model.world import join_world
from jobs.runs import RunSettings, begin_run, ending_tracked, new_run_name, train_rank
from jobs.train import TrainJobConfig
from pipeline.snapshot import Snapshot
from pipeline.storage import Store

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: make browser installs it")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no chromium: apt-get install chromium chromium-driver",
    ),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --window-size=1400,1000"
).split()
MODEL = ASTConfig(patch_time=32, freq_stride=16, time_stride=32, width=32, depth=2, num_heads=2)
TRAIN = TrainConfig(
    num_epochs=3,
    draws_per_epoch=96,
    global_batch_size=8,
    micro_batch_size=8,
    learning_rate=1e-3,
    augment=AugmentConfig(),
    average_from_epoch=2,
    log_every_steps=2,
    allow_empty_classes=True,
)


class Server:
    """`mlflow server` on loopback, which can go away and come back."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        command += ["--serve-artifacts", "--artifacts-destination", f"{self.folder}/mlartifacts"]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        env.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: requests.get(f"{self.address}/health", timeout=5).ok, 90)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)


def wait_for(is_so: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if is_so():
                return
        except requests.RequestException:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        server = Server(tmp_path_factory.mktemp("server"))
        server.start()
        patch.setenv("MLFLOW_TRACKING_URI", server.address)
        patch.setattr("ast_model.tracking_delivery.OUTBOXES", server.folder / "outboxes")
        yield server
        server.stop()


@pytest.fixture(scope="module")
def own(server: Server, snapshot: Snapshot) -> Snapshot:
    for folder in ("shards", "snapshots"):
        (server.folder / folder).symlink_to(snapshot.store.path(folder))
    return dataclasses.replace(snapshot, store=Store(str(server.folder)))


@pytest.fixture(scope="module")
def trainings(own: Snapshot) -> list[RunSettings]:
    """Two that differ in the learning rate."""
    trained = []
    for rate in (1e-4, 1e-3):
        config = TrainJobConfig("demo", model=MODEL, train=dataclasses.replace(TRAIN, learning_rate=rate))
        settings = begin_run(config, own, new_run_name("demo"))
        with join_world() as world, ending_tracked(settings):
            train_rank(settings, world, Watch())
        trained.append(settings)
    return trained


class Browser:
    def __init__(self, driver, address: str, pictures: Path):
        self.driver, self.address, self.pictures = driver, address, pictures

    def see(self, page: str, *texts: str, picture: str = "", settle_s: float = 2.0) -> None:
        """Open a page, wait until it shows all texts, and keep a picture of it."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/#/{page}")
        try:
            wait_for(lambda: all(text in self._text() for text in texts), 60)
        except AssertionError:
            missing = [text for text in texts if text not in self._text()]
            raise AssertionError(f"{page} does not show {missing}, but: {self._text()[:600]}") from None
        if picture:
            time.sleep(settle_s)  # charts are drawn after the text
            self._save(self.pictures / f"{picture}.png")

    def _text(self) -> str:
        return self.driver.find_element("tag name", "body").text

    def _save(self, file: Path) -> None:
        from PIL import Image

        file.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(file))
        with Image.open(file) as image:
            image.convert("RGB").quantize(128).save(file, optimize=True)


@pytest.fixture(scope="module")
def browser(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    pictures = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    yield Browser(driver, server.address, pictures)
    driver.quit()


def test_the_pages_show_what_a_person_looks_for(trainings: list[RunSettings], server: Server, browser: Browser) -> None:
    client = open_client(server.address)
    first, second = (find_run(client, settings.run) for settings in trainings)
    experiment, ids = first.info.experiment_id, [first.info.run_id, second.info.run_id]
    here = f"experiments/{experiment}"
    browser.see(f"{here}/runs", "demo · ", "2 matching runs", picture="mlflow-runs")
    browser.see(f"{here}/runs/{ids[1]}", "train.learning_rate", "eval/mAP", picture="mlflow-run")
    browser.see(f"{here}/runs/{ids[1]}/model-metrics", "train", "eval", picture="mlflow-metrics", settle_s=5)
    runs = f'runs=["{ids[0]}","{ids[1]}"]&experiments=["{experiment}"]'
    browser.see(f"compare-runs?{runs}", "train.learning_rate", "eval/mAP", picture="mlflow-comparison")
    clips = f"{here}/runs/{ids[1]}/artifacts/evaluations/best"
    browser.see(f"{clips}/classes.png", "classes.png", "scores.npz", picture="mlflow-classes", settle_s=4)
    browser.see(f"{clips}/clips.html", "clips.html", "precision_recall.png", picture="mlflow-clips", settle_s=4)
    best = champion(client)
    assert best is not None
    model = client.get_logged_model(best.tags["model_id"])
    browser.see(f"{here}/models/{model.model_id}", model.name, "eval/mAP_low", picture="mlflow-model")
    browser.see(f"models/{REGISTERED}", "champion", "Version 4", picture="mlflow-registry")
    assert len(versions(client)) == 4


def test_a_server_that_is_away_for_a_while_misses_nothing(server: Server, own: Snapshot) -> None:
    run = start_run(own.store, "through an outage", {})
    run.log_metrics({"train/loss": 1.0}, 1)
    assert run._outbox is not None and run._outbox.flush(30)
    server.stop()
    started = time.perf_counter()
    for step in range(2, 200):
        run.log_metrics({"train/loss": 1 / step}, step)
    assert time.perf_counter() - started < 1
    time.sleep(3)
    server.start()
    run.end("FINISHED")
    assert run.series("train/loss")[0] == list(range(1, 200))
    assert run.client.get_run(run.run_id).info.status == "FINISHED"
