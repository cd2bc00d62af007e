"""Embeddings computed by Ray tasks."""

import dataclasses
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.data.augment import Normalisation
from ast_model.embeddings.extract import embed_chunk, find_missing, read_embeddings
from ast_model.model import AST
from jobs.own_sounds.embedding import embed_snapshot, format_time
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
    plan = embed_snapshot(own, model, norm, faster=["--size nano"])
    expected = read_embeddings(plan, own)
    assert f"embedded {len(snapshot.index)} clips" in caplog.text
    assert re.search(r"more clips to embed, [\d.]+ ms each, .*; faster: --size nano", caplog.text)
    name = plan.store.list(plan.files.folder, ".parquet")[-1]
    plan.store.remove(name)
    (rows,) = find_missing(plan, own)
    embed_chunk(rows, plan)  # in this process instead of a worker
    np.testing.assert_array_equal(read_embeddings(plan, own), expected)
    embed_snapshot(own, model, norm)
    assert f"{len(snapshot.index)} of {len(snapshot.index)} embeddings are stored already" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.24, "4.2 s"), (0.0346, "35 ms"), (0.00025, "0.25 ms"), (0.9, "900 ms")]
)
def test_times_are_formatted_without_exponents(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
