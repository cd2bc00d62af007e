"""Open MLflow's pages of two small training runs on a real server in a real browser."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ast_model import recipes
from ast_model.distributed import join_world
from ast_model.tracking.lineage import describe_versions
from ast_model.tracking.registry import REGISTERED, find_champion, list_versions
from ast_model.tracking.run import start_run
from ast_model.tracking.run_results import find_run
from ast_model.tracking.server import PREPROCESSING, open_client, runs_page_url
from ast_model.tracking.tags import MODEL_ID_TAG, ROOT_TAG, VARIANT_TAG
from ast_model.training.job import Launcher
from jobs.command_line.run_names import new_run_name
from jobs.compare import COMMAND_LINE as COMPARE
from jobs.models import COMMAND_LINE as MODELS
from jobs.preprocessing.tracked import log_preprocessing
from jobs.training.runs import TrackedJob, begin_run, end_run_on_exit, train_rank
from jobs.training.settings import TrainJobConfig
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.convert import Conversion, convert_shard
from pipeline.metadata import load_metadata
from pipeline.miniature import make_miniature, serve_miniature
from pipeline.preprocess import PreprocessReport
from pipeline.records import ShardReport
from pipeline.shards.ledger import plan_shards, read_sidecar_table
from pipeline.snapshots.build import build_snapshot
from pipeline.snapshots.snapshot import Snapshot
from pipeline.sources import HttpSource
from pipeline.store.storage import Store
from tests.browser import Browser, Server, wait_for

pytest.importorskip("selenium", reason="selenium is not installed: make browser installs it")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no chromium: apt-get install chromium chromium-driver",
    ),
]
DEMO = recipes.demo()
SHORTER = dataclasses.replace(DEMO.train, draws_per_epoch=400)
RECIPES = (
    SHORTER,
    dataclasses.replace(
        SHORTER, learning_rate=3e-4, augment=dataclasses.replace(SHORTER.augment, mixup_probability=0.0)
    ),
)
KIND = "workflowType=machine_learning"
"""Part of the links within MLflow's pages that an experiment such as ours has."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        server = Server(tmp_path_factory.mktemp("server"))
        server.start()
        patch.setenv("MLFLOW_TRACKING_URI", server.address)
        patch.setattr("ast_model.tracking.delivery.QUEUES", server.folder / "queues")
        yield server
        server.stop()


@pytest.fixture(scope="module")
def data(server: Server) -> Snapshot:
    """A third of the demo's data, and the run that preprocessed them."""
    store, total = Store(str(server.folder / "miniature")), PreprocessReport()
    tracker = start_run(store, "preprocess-miniature", {ROOT_TAG: store.root}, PREPROCESSING)
    miniature = make_miniature(server.folder / "made", num_train=140, num_eval=60)
    config = PreprocessConfig(str(miniature.metadata_folder))
    with serve_miniature(miniature.folder) as media:
        fetch = FetchConfig(deadline_s=5)
        conversion = Conversion(store, HttpSource(media.media_address, fetch), fetch, keep_audio=False)
        metadata = load_metadata(config)
        for plan in plan_shards(
            metadata.segments, read_sidecar_table(store, conversion.fingerprint), clips_per_shard=40
        ):
            report = convert_shard(plan, conversion)
            assert isinstance(report, ShardReport)
            total.add(report)
    snapshot = build_snapshot(store, metadata, conversion.keep_audio)
    log_preprocessing(tracker, snapshot, total)
    tracker.end("FINISHED")
    return snapshot


@pytest.fixture(scope="module")
def trainings(data: Snapshot) -> list[TrackedJob]:
    trained = []
    for train in RECIPES:
        job = begin_run(TrainJobConfig("demo", model=DEMO.model, train=train), data, new_run_name("demo"))
        with join_world("cpu") as world, end_run_on_exit(job):
            train_rank(job, world, Launcher())
        trained.append(job)
    return trained


@pytest.fixture(scope="module")
def browser(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pictures = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    browser = Browser(server.address, tmp_path_factory.mktemp("chromium"), pictures)
    yield browser
    browser.quit()


def test_pages_show_runs_metrics_artifacts_and_models(
    trainings: list[TrackedJob], server: Server, browser: Browser
) -> None:
    client = open_client(server.address)
    first, second = (find_run(client, job.run) for job in trainings)
    experiment = f"experiments/{first.info.experiment_id}"
    names = [str(run.info.run_name) for run in (first, second)]
    assert names[0].startswith("draws 400 ") and names[1].startswith("lr 0.0003 mixu… ")

    shown_by_make_ui = runs_page_url(server.address).split("/#/")[1]
    browser.open(shown_by_make_ui, *names, "miniature (", "audioset-ast", "2 matching runs")
    browser.open(f"{experiment}/runs?{KIND}&compareRunsMode=CHART", *names, "eval/mAP", "eval/d_prime")
    browser.picture("mlflow-charts", settle_s=5)

    here = f"{experiment}/runs/{second.info.run_id}"
    (kept, *_) = [
        each for each in list_versions(client) if each.run_id == second.info.run_id and each.tags[VARIANT_TAG] == "best"
    ]
    model = client.get_logged_model(kept.tags[MODEL_ID_TAG])
    browser.open(f"{here}?{KIND}", "lr 0.0003", "Finished", "train/loss", "git.commit", "miniature (", model.name)
    browser.open(f"{here}/model-metrics?{KIND}", "eval/auc", "eval/mAP")
    browser.open(f"{here}/artifacts/evaluations/best/classes.png?{KIND}", "classes.csv", "scores.npz")
    browser.open(f"{here}/artifacts/evaluations/best/clips.html?{KIND}", "precision_recall.png")
    browser.picture("mlflow-clips", settle_s=4)

    both = f'runs=["{first.info.run_id}","{second.info.run_id}"]&experiments=["{first.info.experiment_id}"]'
    browser.open(f"compare-runs?{both}&{KIND}", *names, "train.learning_rate", "model.depth")
    browser.click("//*[text()='Show diff only']")
    wait_for(lambda: "model.depth" not in browser.text)
    browser.see("train.augment.mixup_probability", "0.0003", "eval/auc")
    browser.scroll_to("//*[text()='Run details']")
    browser.picture("mlflow-comparison")


def test_registry_shows_the_champion_and_its_origin(
    trainings: list[TrackedJob], server: Server, browser: Browser
) -> None:
    client = open_client(server.address)
    best = find_champion(client)
    assert best is not None and len(list_versions(client)) == 4
    model = client.get_logged_model(best.tags[MODEL_ID_TAG])
    browser.open(f"experiments/{model.experiment_id}/models?{KIND}", "average", model.name)
    place = f"experiments/{model.experiment_id}/models/{model.model_id}"
    browser.open(f"{place}?{KIND}", model.name, "eval/mAP_low", trainings[0].snapshot.snapshot_id)
    browser.open(f"models/{REGISTERED}?{KIND}", "champion", "Version 4")
    snapshot_id = trainings[0].snapshot.snapshot_id
    rows = describe_versions(client, snapshot_id)
    for job in trainings:
        assert MODELS.main(["publish", "--run", job.run, "--root", job.store.root]) == 0
    assert len(list_versions(client)) == 4, "what is there already stays as it is"
    assert len(rows) == 4 and all(row["made by"] == "preprocess-miniature" for row in rows)
    assert describe_versions(client, "another") == []


def test_comparison_of_two_runs_is_one_file(
    trainings: list[TrackedJob], browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [job.run for job in trainings]
    page = tmp_path / "comparison.html"
    assert COMPARE.main([*runs, "--root", trainings[0].store.root, "--output", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "train.learning_rate" in shown and "train.num_epochs" not in shown
    browser.driver.set_window_size(950, 1450)
    browser.driver.get(page.as_uri())
    browser.see("Settings that differ", "0.0003", "ΔmAP vs A", "Telephone dialing, DTMF")
    browser.picture("comparison")


def test_server_outage_loses_no_metrics(server: Server, data: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    run = start_run(data.store, "through an outage", {})
    run.log_metrics({"train/loss": 1.0}, 1)
    assert run._queue is not None and run._queue.flush(30)
    server.stop()
    for step in range(2, 200):
        run.log_metrics({"train/loss": 1 / step}, step)
    assert not run._queue.flush(0), "logging has not waited for the server"
    wait_for(lambda: "does not answer" in caplog.text)
    server.start()
    run.end("FINISHED")
    assert run.metric_history("train/loss")[0] == list(range(1, 200))
    assert run.client.get_run(run.run_id).info.status == "FINISHED"
