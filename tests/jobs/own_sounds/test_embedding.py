"""Embeddings computed by Ray tasks."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.data.augment import Normalisation
from ast_model.embeddings.extract import embed_chunk, read_embeddings
from ast_model.model import AST
from jobs.own_sounds.embedding import embed_snapshot
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]


def test_missing_embeddings_are_computed_with_an_estimate_of_the_time(
    snapshot: Snapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("shards", "snapshots"):
        (tmp_path / name).symlink_to(snapshot.store.path(name))
    own = dataclasses.replace(snapshot, store=Store(str(tmp_path)))
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    model, norm = AST(ASTConfig(freq_stride=16, time_stride=32, width=16, depth=1, num_heads=2)), Normalisation(-4, 4)
    plan = embed_snapshot(own, model, norm)
    expected = read_embeddings(plan)
    assert f"embedded {len(snapshot.index)} clips" in caplog.text and "more clips to embed" in caplog.text
    first = plan.chunks[-1]
    plan.store.remove(plan.files.chunk(first))
    embed_chunk(first, plan)  # in this process instead of a worker
    np.testing.assert_array_equal(read_embeddings(plan), expected)
    embed_snapshot(own, model, norm)
    assert f"{len(snapshot.index)} embeddings are stored already" in caplog.text
