"""Embeddings kept in the store, against the Tagger's on the same features."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.data.augment import Normalisation
from ast_model.embeddings import extract
from ast_model.embeddings.extract import (
    EmbeddingPlan,
    embed_chunk,
    find_missing,
    plan_embeddings,
    read_embeddings,
    weights_digest,
)
from ast_model.export import export_safetensors
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from pipeline.errors import CorruptError
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot, publish_selection
from pipeline.store.storage import Store

NORM = Normalisation(-4.0, 4.0)


@pytest.fixture
def model(snapshot: Snapshot) -> AST:
    torch.manual_seed(0)
    return AST(
        ASTConfig(len(snapshot.labels), patch_time=32, freq_stride=16, time_stride=32, width=16, depth=1, num_heads=2)
    ).eval()


@pytest.fixture
def own(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    """The small store's snapshot, in a store that keeps the test's embeddings."""
    monkeypatch.setattr(extract, "MIN_CHUNK_CLIPS", 20)
    for name in ("shards", "snapshots"):
        (tmp_path / name).symlink_to(snapshot.store.path(name))
    return dataclasses.replace(snapshot, store=Store(str(tmp_path)))


@pytest.fixture
def plan(own: Snapshot, model: AST) -> EmbeddingPlan:
    plan = plan_embeddings(own, model, NORM)
    file = Path(plan.store.path(plan.files.model))
    file.parent.mkdir(parents=True)
    export_safetensors(model, file, ModelMetadata(own.labels.names, NORM.mean, NORM.std))
    return plan


def embed_all(plan: EmbeddingPlan, snapshot: Snapshot) -> list[str]:
    for rows in find_missing(plan, snapshot):
        embed_chunk(rows, plan)
    return plan.store.list(plan.files.folder, ".parquet")


def test_embedding_equals_the_tagger_s(plan: EmbeddingPlan, model: AST, own: Snapshot) -> None:
    embed_all(plan, own)
    found = read_embeddings(plan, own)
    assert found.shape == (len(own.index), 16)
    tagger = Tagger(model, ModelMetadata(own.labels.names, NORM.mean, NORM.std), "cpu")
    reader, num_frames = ClipReader(own), own.index["num_frames"].to_pylist()
    for row in (0, 7, len(found) - 1):
        fbank = np.empty((num_frames[row], 128), np.float16)
        reader.read_fbank(row, fbank)
        windows = tagger.scorer.whole_grid.cut(len(fbank))
        _, expected = tagger.scorer.score_windows(fbank.astype(np.float32), windows)
        np.testing.assert_allclose(found[row], expected[0], atol=1e-5)


def test_only_missing_clips_are_embedded_again(plan: EmbeddingPlan, own: Snapshot) -> None:
    names = embed_all(plan, own)
    before = read_embeddings(plan, own)
    assert find_missing(plan, own) == []
    plan.store.remove(names[1])
    with pytest.raises(CorruptError, match=r"are missing; run again"):
        read_embeddings(plan, own)
    assert 0 < sum(map(len, find_missing(plan, own))) < len(before)
    assert embed_all(plan, own) == names
    np.testing.assert_array_equal(read_embeddings(plan, own), before)


def test_selections_share_the_embeddings_of_the_whole(plan: EmbeddingPlan, own: Snapshot, model: AST) -> None:
    embed_all(plan, own)
    rows = np.arange(3, len(own.index))
    selected = publish_selection(own, rows, {"exclude": ["the first three"]})
    plan_of_selection = plan_embeddings(selected, model, NORM)
    assert find_missing(plan_of_selection, selected) == []
    np.testing.assert_array_equal(read_embeddings(plan_of_selection, selected), read_embeddings(plan, own)[3:])


def test_damage_is_named(plan: EmbeddingPlan, own: Snapshot) -> None:
    name = embed_all(plan, own)[0]
    plan.store.write_bytes(name, plan.store.read_bytes(name)[:-100])
    with pytest.raises(CorruptError, match=rf"{name} is damaged"):
        read_embeddings(plan, own)


def test_name_depends_on_all_weights_but_the_head_and_on_the_normalisation(snapshot: Snapshot, model: AST) -> None:
    plan = plan_embeddings(snapshot, model, NORM)
    other_head = AST(dataclasses.replace(model.config, num_classes=3))
    other_head.load_state_dict({k: v for k, v in model.state_dict().items() if "head.linear" not in k}, strict=False)
    assert weights_digest(other_head) == weights_digest(model)
    names = {plan.name, plan_embeddings(snapshot, model, Normalisation(-4.0, 4.1)).name}
    with torch.no_grad():
        model.blocks[0].mlp.up.bias[0] += 1e-6  # pyright: ignore
    assert plan_embeddings(snapshot, model, NORM).name not in names
    assert len(names) == 2
