"""A head fitted to kept embeddings is a training like any other: run, checkpoint, predictions, models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.config import ASTConfig, TrainConfig
from ast_model.embeddings.extract import embed_chunk, plan_embeddings
from ast_model.embeddings.few_shot import measure_few_shots
from ast_model.evaluation.ensemble import score_checkpoints
from ast_model.evaluation.predictions import load_predictions, predictions_name
from ast_model.export import export_hugging_face
from ast_model.inference import Tagger
from ast_model.pretrained.load import load_pretrained
from ast_model.training.trainer import initial_model
from jobs.command_line.settings import RayConfig
from jobs.own_sounds.embedding import publish_model
from jobs.own_sounds.finetune import FinetuneRun, choose_head_only, warn_of_random_weights
from jobs.own_sounds.head_only import head_settings, recordings_of, train_head
from jobs.own_sounds.settings import FinetuneConfig
from jobs.training.runs import begin_run, ending_tracked
from pipeline.recordings.tables import LabelledClip
from pipeline.snapshots.snapshot import Snapshot

SHAPE = ASTConfig(freq_stride=16, time_stride=32, width=16, depth=1, num_heads=2)


@pytest.mark.slow
def test_the_checkpoint_is_a_plain_ast_that_scores_as_was_measured(
    snapshot: Snapshot, empty_database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path(snapshot.store.path("mlflow.db")).write_bytes(empty_database.read_bytes())
    train = TrainConfig(global_batch_size=4, micro_batch_size=4, allow_empty_classes=True, eval_split="eval")
    run = FinetuneRun("finetune_head", "", SHAPE, head_settings(train), "", RayConfig("1"))
    job = begin_run(run, snapshot, "finetune_head-test")
    model = initial_model(job).eval()
    plan = plan_embeddings(snapshot, model, job.normalisation, 2)
    publish_model(model, plan)
    for first in plan.missing_chunks():  # so that no Ray is needed
        embed_chunk(first, plan)
    with ending_tracked(job):
        report = train_head(job, num_views=2, shots=(1,), use_gpu=False)
    store = snapshot.store
    best = best_checkpoint(store, job.folder)
    assert best is not None and best[1] == report.metrics["eval/mAP"]
    address = store.url(best[0])
    (member,) = score_checkpoints((address,), snapshot, "eval", 4)
    kept = load_predictions(store, predictions_name(job.run, "best"))
    np.testing.assert_allclose(kept.scores, member.evaluation.scores, atol=1e-5)
    assert store.read_json(f"runs/{job.run}/history.json") == [{"epoch": 1, **report.metrics}]
    tagger = Tagger.load(address, device="cpu")
    assert tagger.labels == snapshot.labels.names
    export_hugging_face(tagger.model, tagger.metadata, tmp_path / "hugging face")
    fbank = np.random.default_rng(0).normal(size=(1024, 128)).astype(np.float32)
    back = Tagger.load(tmp_path / "hugging face", device="cpu")
    np.testing.assert_allclose(back.scores_of_fbank(fbank), tagger.scores_of_fbank(fbank), atol=1e-5)
    # A training of all weights that starts from it keeps the head.
    again = load_pretrained(address, model.config, snapshot.labels.names)
    torch.testing.assert_close(again.head.linear.weight, tagger.model.head.linear.weight)
    warn_of_random_weights(address)
    assert "leave --init out" in caplog.text
    assert any("in cross-validation" in line for line in report.lines())
    assert report.few_shots is not None and list(report.few_shots["per class"]) == [1]
    record = json.loads(Path(store.path(f"runs/{job.run}/run.json")).read_text())
    assert record["train"]["num_epochs"] == 1


def test_a_recording_is_a_key_without_its_start(snapshot: Snapshot) -> None:
    rows = np.arange(3)
    keys = snapshot.index["key"].to_pylist()[:3]
    assert [key.startswith(f"{name}_") for key, name in zip(keys, recordings_of(snapshot, rows), strict=True)]


@pytest.mark.parametrize(
    ("config", "has_gpu", "num_clips", "expected"),
    [
        (FinetuneConfig(), False, 5_000, True),
        (FinetuneConfig(), True, 5_000, False),
        (FinetuneConfig(), True, 100, True),
        (FinetuneConfig(head_only=False), False, 100, False),
        (FinetuneConfig(num_epochs=3), False, 100, False),
        (FinetuneConfig(resume="finetune-1"), False, 100, False),
        (FinetuneConfig(head_only=True, num_epochs=3), True, 5_000, True),
    ],
)
def test_the_head_alone_is_chosen_without_a_gpu_or_with_few_clips(
    config: FinetuneConfig, has_gpu: bool, num_clips: int, expected: bool
) -> None:
    clips = [LabelledClip(Path("a"), ("dog",), "train", 0, 1000)] * num_clips
    assert choose_head_only(config, has_gpu, clips) == expected


@pytest.mark.slow
def test_more_examples_give_better_heads() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=400)
    embeddings = (rng.normal(size=(3, 8))[labels] + rng.normal(size=(400, 8))).astype(np.float32)
    targets = np.eye(3)[labels]
    table = measure_few_shots(
        (embeddings[:200], targets[:200]), (embeddings[200:], targets[200:]), TrainConfig(loss="ce"), (1, 20, 1000)
    )
    assert list(table["clips"]) == [3, 60, 200]
    assert table["mean"].is_monotonic_increasing and table["mean"].iloc[-1] > table["mean"].iloc[0]
    assert table["lowest"].iloc[-1] == table["highest"].iloc[-1], "all clips were drawn each time"
