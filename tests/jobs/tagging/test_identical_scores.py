"""The three ways to tag a file share one implementation."""

import asyncio
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.export import export_safetensors
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.service.limits import Limits
from ast_model.service.service import PendingWindow, Result, ServedModel, Service, run_batch
from ast_model.tagging.options import TaggingOptions
from jobs.predict import COMMAND_LINE
from pipeline.audio.decode import encode_flac

SHAPE = ASTConfig(3, num_frames=128, freq_stride=16, time_stride=16, width=48, depth=1, num_heads=3)
LABELS = ("Speech", "Dog, barking", "Rain")
ROUNDING = 0.6e-6
"""The service rounds scores to six decimals, and CSV files to six digits."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    export_safetensors(AST(SHAPE), tmp_path / "ast.safetensors", ModelMetadata(LABELS, -5, 4))
    return tmp_path / "ast.safetensors"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 40_000)
    (tmp_path / "noise.flac").write_bytes(encode_flac((noise - noise.mean()).astype(np.float32)))
    return tmp_path / "noise.flac"


def predict(checkpoint: Path, file: Path, *words: str) -> pd.DataFrame:
    output = file.with_suffix(".parquet")
    command = ["--checkpoint", str(checkpoint), "--audio", str(file), "--device", "cpu", "--format", "parquet"]
    assert COMMAND_LINE.main([*command, "--output", str(output), *words]) == 0
    return pd.read_parquet(output)


def ask_service(tagger: Tagger, file: Path, options: TaggingOptions) -> dict[str, pd.DataFrame]:
    async def run(window: PendingWindow) -> Result:
        return run_batch([window])[0]

    async def ask() -> dict[str, pd.DataFrame]:
        answer = await Service(ServedModel(tagger, "ast"), Limits(), run).tag(file.read_bytes(), options)
        return {name: pd.DataFrame(answer[name]) for name in ("tags", "timeline") if name in answer}

    return asyncio.run(ask())


def test_predict_service_and_tagger_give_the_same_scores(checkpoint: Path, file: Path) -> None:
    tagger = Tagger.load(checkpoint, device="cpu")
    expected = tagger.tag(file, top_k=2)
    for table in (
        predict(checkpoint, file, "--top-k", "2"),
        ask_service(tagger, file, TaggingOptions(top_k=2))["tags"],
    ):
        assert table["label"].tolist() == [label for label, _ in expected]
        np.testing.assert_allclose(table["score"], [score for _, score in expected], rtol=0, atol=ROUNDING)


def test_predict_service_and_tagger_give_the_same_timeline(checkpoint: Path, file: Path) -> None:
    tagger = Tagger.load(checkpoint, device="cpu")
    expected = tagger.timeline(file, window_s=1, hop_s=0.5)
    options = TaggingOptions(timeline=True, window_s=1, hop_s=0.5)
    predicted = predict(checkpoint, file, "--timeline", "--window-s", "1", "--hop-s", "0.5")
    for table in (predicted, ask_service(tagger, file, options)["timeline"]):
        found = table.pivot(index="start_s", columns="label", values="score")[list(LABELS)]
        assert found.index.tolist() == expected.index.tolist() == [0, 0.5, 1, 1.5]
        np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


def test_predict_and_service_select_the_same_classes(checkpoint: Path, file: Path) -> None:
    tagger = Tagger.load(checkpoint, device="cpu")
    threshold = tagger.tag(file)[1][1] - 1e-4
    options = TaggingOptions(classes=("Rain", "Speech"), threshold=threshold)
    predicted = predict(checkpoint, file, "--classes", "Rain", "Speech", "--threshold", str(threshold))
    answered = ask_service(tagger, file, options)["tags"]
    expected = [label for label, score in tagger.tag(file) if label in options.classes and score >= threshold]
    assert predicted["label"].tolist() == answered["label"].tolist() == expected
