"""A head fitted to stored embeddings gives the same files as training: run, checkpoint, predictions, history."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.config import ASTConfig, TrainConfig
from ast_model.embeddings.extract import embed_chunk, find_missing, plan_embeddings
from ast_model.evaluation.ensemble import score_checkpoints
from ast_model.evaluation.predictions import load_predictions, predictions_name
from ast_model.export import export_hugging_face
from ast_model.inference import Tagger
from ast_model.pretrained.load import load_pretrained
from ast_model.training.trainer import initial_model
from jobs.command_line.settings import RayConfig
from jobs.own_sounds.embedding import publish_model
from jobs.own_sounds.finetune import warn_if_head_on_random_weights
from jobs.own_sounds.fitted_runs import FinetuneRun
from jobs.own_sounds.head_only import groups_of_clips, head_settings, train_head
from jobs.own_sounds.training_plan import embedding_normalisation
from jobs.training.runs import begin_run, end_run_on_exit
from pipeline.snapshots.snapshot import Snapshot

SHAPE = ASTConfig(freq_stride=16, time_stride=32, width=16, depth=1, num_heads=2)


@pytest.mark.slow
def test_checkpoint_is_a_plain_ast_with_the_reported_scores(
    snapshot: Snapshot, empty_database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path(snapshot.store.path("mlflow.db")).write_bytes(empty_database.read_bytes())
    train = TrainConfig(global_batch_size=4, micro_batch_size=4, allow_empty_classes=True, eval_split="eval")
    run = FinetuneRun("finetune_head", "", SHAPE, head_settings(train), "", RayConfig("1"))
    job = begin_run(run, snapshot, "finetune_head-test")
    model = initial_model(job).eval()
    plan = plan_embeddings(snapshot, model, embedding_normalisation(""))
    publish_model(model, plan)
    for rows in find_missing(plan, snapshot):  # otherwise train_head would start Ray
        embed_chunk(rows, plan)
    with end_run_on_exit(job):
        report = train_head(job, use_gpu=False)
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
    # A training of all weights can start from it with its head.
    again = load_pretrained(address, model.config, snapshot.labels.names)
    torch.testing.assert_close(again.head.linear.weight, tagger.model.head.linear.weight)
    warn_if_head_on_random_weights(address)
    assert "omit --init" in caplog.text
    assert any("in cross-validation" in line for line in report.lines())
    record = json.loads(Path(store.path(f"runs/{job.run}/run.json")).read_text())
    assert record["train"]["num_epochs"] == 1


def test_group_of_a_clip_is_stated_or_its_key_without_the_start(snapshot: Snapshot) -> None:
    rows = np.arange(3)
    keys = snapshot.index["key"].to_pylist()[:3]
    assert [key.startswith(f"{name}_") for key, name in zip(keys, groups_of_clips(snapshot, rows), strict=True)]
    assert groups_of_clips(snapshot, rows[:1], {keys[0]: "a"}) == ["a"]
