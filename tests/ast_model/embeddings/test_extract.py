"""Embeddings kept in the store, against the Tagger's on the same features."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.data.augment import Normalisation
from ast_model.embeddings import extract
from ast_model.embeddings.extract import EmbeddingPlan, embed_chunk, plan_embeddings, read_embeddings, weights_digest
from ast_model.export import export_safetensors
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from pipeline.errors import CorruptError
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

NORM = Normalisation(-4.0, 4.0)


@pytest.fixture
def model(snapshot: Snapshot) -> AST:
    torch.manual_seed(0)
    return AST(
        ASTConfig(len(snapshot.labels), patch_time=32, freq_stride=16, time_stride=32, width=16, depth=1, num_heads=2)
    ).eval()


@pytest.fixture
def plan(snapshot: Snapshot, model: AST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingPlan:
    """Of the small store's clips in two views; embeddings and model lie in the test's own store."""
    monkeypatch.setattr(extract, "MIN_CHUNK_CLIPS", 20)
    for name in ("shards", "snapshots"):
        (tmp_path / name).symlink_to(snapshot.store.path(name))
    own = dataclasses.replace(snapshot, store=Store(str(tmp_path)))
    plan = plan_embeddings(own, model, NORM, num_views=2)
    file = Path(plan.store.path(plan.files.model))
    file.parent.mkdir(parents=True)
    export_safetensors(model, file, ModelMetadata(snapshot.labels.names, NORM.mean, NORM.std))
    return plan


def test_the_first_view_is_the_tagger_s_embedding(plan: EmbeddingPlan, model: AST, snapshot: Snapshot) -> None:
    for first in plan.missing_chunks():
        embed_chunk(first, plan)
    found = read_embeddings(plan)
    assert found.shape == (len(snapshot.index), 2, 16)
    tagger = Tagger(model, ModelMetadata(snapshot.labels.names, NORM.mean, NORM.std), "cpu")
    reader, num_frames = ClipReader(snapshot), snapshot.index["num_frames"].to_pylist()
    for row in (0, 7, len(found) - 1):
        fbank = np.empty((num_frames[row], 128), np.float16)
        reader.read_fbank(row, fbank)
        windows = tagger.scorer.whole_grid.cut(len(fbank))
        _, expected = tagger.scorer.score_windows(fbank.astype(np.float32), windows)
        np.testing.assert_allclose(found[row, 0], expected[0], atol=1e-5)
    assert (np.abs(found[:, 1] - found[:, 0]).max(axis=1) > 1e-3).all(), "the second view is augmented"


def test_only_missing_chunks_are_computed_and_come_back_the_same(plan: EmbeddingPlan) -> None:
    for first in plan.missing_chunks():
        embed_chunk(first, plan)
    before = {first: plan.store.read_bytes(plan.files.chunk(first)) for first in plan.chunks}
    assert plan.missing_chunks() == []
    plan.store.remove(plan.files.chunk(20))
    with pytest.raises(CorruptError, match="1 are missing"):
        read_embeddings(plan)
    assert plan.missing_chunks() == [20]
    embed_chunk(20, plan)
    assert {first: plan.store.read_bytes(plan.files.chunk(first)) for first in plan.chunks} == before


def test_damage_is_named(plan: EmbeddingPlan) -> None:
    for first in plan.missing_chunks():
        embed_chunk(first, plan)
    plan.store.write_bytes(plan.files.chunk(0), plan.store.read_bytes(plan.files.chunk(0))[:-100])
    with pytest.raises(CorruptError, match=r"000000000\.npy is damaged"):
        read_embeddings(plan)


def test_the_name_follows_from_all_that_the_values_follow_from(snapshot: Snapshot, model: AST) -> None:
    plan = plan_embeddings(snapshot, model, NORM)
    other_head = AST(dataclasses.replace(model.config, num_classes=3))
    other_head.load_state_dict({k: v for k, v in model.state_dict().items() if "head.linear" not in k}, strict=False)
    assert weights_digest(other_head) == weights_digest(model)
    names = {plan.name, plan_embeddings(snapshot, model, Normalisation(-4.0, 4.1)).name}
    names |= {plan_embeddings(snapshot, model, NORM, num_views=2).name}
    with torch.no_grad():
        model.blocks[0].mlp.up.bias[0] += 1e-6  # pyright: ignore
    assert plan_embeddings(snapshot, model, NORM).name not in names
    assert len(names) == 3
