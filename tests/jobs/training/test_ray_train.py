import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.train import Result, TrainingFailedError

from ast_model.checkpoints.checkpoint import (
    Checkpoint,
    LoopState,
    list_checkpoints,
    newest_checkpoint,
    save_checkpoint,
)
from ast_model.config import ASTConfig, CheckpointConfig, RegulariseConfig, TrainConfig
from ast_model.data.augment import AugmentConfig
from ast_model.distributed import World
from ast_model.tracking.run import TrackedRun
from ast_model.training.job import Launcher
from jobs.command_line.run_names import new_run_name
from jobs.command_line.settings import RayConfig
from jobs.training import ray_train
from jobs.training.ray_train import train_on_ray
from jobs.training.runs import TrackedJob, begin_run, end_run_on_exit, resume_run, train_rank
from jobs.training.settings import TrainJobConfig
from jobs.training.train import train
from pipeline.errors import (
    AudioTaggingError,
    ConfigError,
    CorruptError,
    MismatchError,
    NoClipsError,
    StoppedError,
    TrainingError,
    WeightsError,
)
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store
from tests.pipeline.cluster.metrics_endpoint import Samples, scrape

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray"),
]


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")


@pytest.fixture(autouse=True)
def stopped_heartbeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop heartbeats of runs that a test leaves open, since they would outlive the test's database."""
    started: list[TrackedRun] = []
    start_heartbeat = TrackedRun.start_heartbeat

    def start_and_keep(run: TrackedRun) -> None:
        start_heartbeat(run)
        started.append(run)

    monkeypatch.setattr(TrackedRun, "start_heartbeat", start_and_keep)
    yield
    for run in started:
        assert run._heartbeat is not None
        run._heartbeat.stop()


@pytest.fixture
def own(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    """The small snapshot, with a private store for runs."""
    for folder in ("shards", "snapshots"):
        (tmp_path / folder).symlink_to(snapshot.store.path(folder))
    return dataclasses.replace(snapshot, store=Store(str(tmp_path)))


def make_config(**settings) -> TrainJobConfig:
    train = TrainConfig(
        num_epochs=2,
        draws_per_epoch=200,
        global_batch_size=4,
        micro_batch_size=4,
        learning_rate=1e-3,
        augment=AugmentConfig(),
        log_every_steps=5,
        checkpoints=CheckpointConfig(every_steps=10, every_minutes=None),
    )
    model = ASTConfig(patch_time=32, freq_stride=16, time_stride=32, width=16, depth=2, num_heads=2)
    return TrainJobConfig("test", model=model, train=dataclasses.replace(train, **settings))


def begin(config: TrainJobConfig, snapshot: Snapshot) -> TrackedJob:
    return begin_run(config, snapshot, new_run_name("test"))


def wait_for_checkpoint(job: TrackedJob) -> None:
    deadline = time.monotonic() + 120
    while not list_checkpoints(job.store, f"runs/{job.run}/checkpoints"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def training_workers() -> list[psutil.Process]:
    """Return the live processes of Ray Train's workers."""
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if any("RayTrainWorker" in part for part in process.cmdline())]


def once_under_way(job: TrackedJob, act: Callable[[], None]) -> threading.Thread:
    def wait_and_act() -> None:
        wait_for_checkpoint(job)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def test_killed_worker_costs_only_steps_since_the_last_checkpoint(own: Snapshot) -> None:
    job = begin(make_config(), own)
    thread = once_under_way(job, lambda: training_workers()[-1].send_signal(signal.SIGKILL))
    history = train_on_ray(job, RayConfig("2"))
    thread.join()
    assert [metrics["epoch"] for metrics in history] == [1, 2]
    whole = begin(make_config(), own)
    expected = train_rank(whole, World(0, 1, torch.device("cpu")), Launcher())
    for found, metrics in zip(history, expected, strict=True):
        assert found == pytest.approx(metrics, rel=1e-2)


@pytest.mark.rehearsal
def test_endpoint_shows_a_training_while_it_runs_and_agrees_with_mlflow(own: Snapshot) -> None:
    job, seen, has_ended = begin(make_config(num_epochs=8), own), list[Samples](), threading.Event()

    def watch() -> None:
        while not has_ended.wait(0.2):
            seen.append(scrape("run"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with end_run_on_exit(job):
        train_on_ray(job, RayConfig("1"))
    has_ended.set()
    watcher.join()
    client, run = job.tracker.client, job.tracker.run_id
    per_epoch, per_step = (
        ("eval/mAP", "train/epoch_loss"),
        ("train/loss", "train/learning_rate", "system/samples_per_s"),
    )
    for name in (*per_epoch, *per_step):
        logged = [point.value for point in client.get_metric_history(run, name)]
        found = [samples[name.replace("/", "_").lower(), job.run] for samples in seen]
        assert any(pytest.approx(value) in found for value in logged)
    assert all(samples["train_skipped_steps", job.run] == 0 for samples in seen)


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray reads its record so
def test_reported_epochs_equal_mlflows_and_refer_to_the_stores_checkpoints(own: Snapshot) -> None:
    job = begin(make_config(average_last_epochs=2), own)
    with end_run_on_exit(job):
        history = train_on_ray(job, RayConfig("2"))
    reported = Result.from_path(own.store.url(f"runs/{job.run}"))
    table = reported.metrics_dataframe
    assert table is not None
    assert [row.dropna().to_dict() for _, row in table.iterrows()] == history
    for name in ("eval/mAP", "eval/average/mAP", "train/epoch_loss"):
        logged = {point.step: point.value for point in job.tracker.client.get_metric_history(job.tracker.run_id, name)}
        assert logged == table.set_index("epoch")[name].dropna().to_dict()
    folders = [Path(checkpoint.path) for checkpoint, _ in reported.best_checkpoints or ()]
    assert [folder.relative_to(own.store.root).parts[2] for folder in folders] == ["checkpoints"] * 2 + ["average"]
    assert all((folder / "checkpoint.json").is_file() for folder in folders)
    weights = Path(own.store.root, "runs", job.run).rglob("model.safetensors")
    assert {file.parents[1].name for file in weights} == {"checkpoints", "average"}  # no copies elsewhere


@pytest.mark.rehearsal
def test_sigterm_saves_and_stops_and_the_run_resumes(own: Snapshot) -> None:
    config = make_config()
    job = begin(config, own)
    thread = once_under_way(job, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError, match=f"resume with --resume {job.run}"), end_run_on_exit(job):
        train_on_ray(job, RayConfig("1"))
    thread.join()
    run = job.tracker.client.get_run(job.tracker.run_id)
    assert run.info.status == "KILLED"
    resumed = resume_run(job.run, own.store, config)
    assert resumed.snapshot.snapshot_id == own.snapshot_id
    assert resumed.tracker.run_id == job.tracker.run_id
    checkpoint = newest_checkpoint(own.store, f"runs/{job.run}/checkpoints")
    assert checkpoint is not None
    assert checkpoint.description["tracking_run"] == job.tracker.run_id
    with end_run_on_exit(resumed):
        train_on_ray(resumed, RayConfig("1"))
    with pytest.raises(ConfigError, match=f"run {job.run} is finished"):
        resume_run(job.run, own.store, config)


def test_more_workers_than_the_cluster_has_are_reported(own: Snapshot) -> None:
    job = begin(make_config(), own)
    expected = r"expected 64 workers of 1 CPU each within 1 s, found a cluster of 1 nodes with 2 CPU"
    with pytest.raises(TrainingError, match=expected):
        train_on_ray(job, RayConfig("64:80", start_timeout_s=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_splits": ("balanced_train",)}, r"of 15 classes have no training clip: .*Siren"),
        ({"draws_per_epoch": 3}, "at least one global batch of 4 per epoch, found 3 draws"),
        ({"sampler": "uniform"}, r"--train.draws-per-epoch is 200, but there are \d+ clips"),
        ({"regularise": RegulariseConfig(patchout_time=99)}, "expected patchout to leave some"),
    ],
)
def test_impossible_trainings_are_rejected_before_recording_a_run(own: Snapshot, settings: dict, message: str) -> None:
    with pytest.raises(AudioTaggingError, match=message):
        begin(make_config(**settings), own)
    assert {file.name for file in Path(own.store.root).iterdir()} == {"shards", "snapshots", ".scratch"}


def test_more_workers_than_samples_in_a_step_are_rejected_first(tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(), root=str(tmp_path / "nothing"), ray=RayConfig("2:8"))
    with pytest.raises(ConfigError, match="one sample per rank, found 4 for 8 ranks"):
        train(config)


@pytest.mark.rehearsal
def test_user_errors_are_not_retried(own: Snapshot) -> None:
    job = begin(make_config(), own)
    wrong = dataclasses.replace(job, config=dataclasses.replace(job.config, init="gone.pth"))
    with pytest.raises(WeightsError, match=r"gone\.pth"):
        train_on_ray(wrong, RayConfig("1", max_failures=1))


def test_run_resumes_only_with_its_settings_and_snapshot(own: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    job = begin(make_config(), own)
    with pytest.raises(ConfigError, match=rf"expected a run named other .* found {job.run}"):
        resume_run("other", own.store, make_config())
    with pytest.raises(MismatchError, match=r"started with other settings .--train.global-batch-size: 4 then, 8 now"):
        resume_run(job.run, own.store, make_config(global_batch_size=8))
    resume_run(job.run, own.store, make_config(learning_rate=1e-4))
    assert "continues with a changed setting, --train.learning-rate: 0.001 then, 0.0001 now" in caplog.text
    with pytest.raises(MismatchError, match=rf"trains on snapshot {own.snapshot_id}, found --snapshot other"):
        resume_run(job.run, own.store, make_config(), "other")
    assert resume_run(job.run, own.store, make_config(), own.snapshot_id).snapshot.snapshot_id == own.snapshot_id
    record = own.store.read_json(f"runs/{job.run}/run.json")
    for damaged in ([], {}, {**record, "train": None}):
        own.store.write_json(f"runs/{job.run}/run.json", damaged)
        with pytest.raises(CorruptError, match=r"run.json: expected the record of a run"):
            resume_run(job.run, own.store, make_config())
    own.store.write_json(f"runs/{job.run}/run.json", {**record, "snapshot": "gone"})
    with pytest.raises(NoClipsError, match="trains on snapshot gone, which is no longer in"):
        resume_run(job.run, own.store, make_config())


class FailingTrainer:
    """Fake of Ray Train's trainer. Every round fails; the first `num_checkpoints` rounds write a checkpoint."""

    mailbox: Any = None

    def __init__(self, job: TrackedJob, num_checkpoints: int, num_attempts: int) -> None:
        self.job, self.num_left, self.num_attempts, self.num_rounds = job, num_checkpoints, num_attempts, 0

    def start(self, job: TrackedJob, config: RayConfig, mailbox: Any) -> "FailingTrainer":
        self.mailbox = mailbox
        return self

    def fit(self) -> None:
        self.num_rounds += 1
        for _ in range(self.num_attempts):
            ray.get(self.mailbox.count_attempt.remote())
        if self.num_left:
            self.num_left -= 1
            checkpoint = Checkpoint(LoopState(step=self.num_rounds), {"weight": torch.zeros(1)})
            save_checkpoint(self.job.store, self.job.folder, checkpoint)
        raise TrainingFailedError


def test_failures_count_only_without_a_new_checkpoint(own: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    job = begin(make_config(), own)
    failing = FailingTrainer(job, num_checkpoints=5, num_attempts=3)
    monkeypatch.setattr(ray_train, "_trainer", failing.start)
    with pytest.raises(TrainingError, match="the workers failed 3 times without a new checkpoint"):
        train_on_ray(job, RayConfig("1", max_failures=2))
    assert failing.num_rounds == 6


def test_workers_that_never_started_are_not_reported_as_retried(own: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    job = begin(make_config(), own)
    monkeypatch.setattr(ray_train, "_trainer", FailingTrainer(job, num_checkpoints=0, num_attempts=0).start)
    with pytest.raises(TrainingError, match="the workers could not start"):
        train_on_ray(job, RayConfig("1", max_failures=3))


@pytest.mark.parametrize("use_gpu", [True, None], ids=["asked for", "left open"])
def test_unusable_gpu_is_rejected_before_ray_train_starts(
    own: Snapshot, monkeypatch: pytest.MonkeyPatch, use_gpu: bool | None
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0})
    monkeypatch.setattr(ray_train, "_wait_for_workers", lambda config: None)
    monkeypatch.setattr(ray_train, "GPU_CHECK", {"num_cpus": 0})  # the test's Ray has no GPUs
    with pytest.raises(ConfigError, match=r"expected a GPU that torch .* found (no )?NVIDIA driver"):
        train_on_ray(begin(make_config(), own), RayConfig("1", use_gpu=use_gpu))


@pytest.mark.parametrize(("text", "workers"), [("4", (4, 4)), ("2:8", (2, 8))])
def test_workers_are_a_number_or_a_range(text: str, workers: tuple[int, int]) -> None:
    assert RayConfig(text).num_workers == workers


@pytest.mark.parametrize("text", ["", "0", "3:2", "1:2:3", "two", "-1"])
def test_invalid_workers_are_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="--workers must be a number"):
        RayConfig(text)
