import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.export import export_hugging_face
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from jobs.predict import COMMAND_LINE
from pipeline.audio.decode import encode_flac

SHAPE = ASTConfig(3, num_frames=128, freq_stride=16, time_stride=16, width=48, depth=1, num_heads=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "ast"
    torch.manual_seed(0)
    export_hugging_face(AST(SHAPE), ModelMetadata(("Speech", "Dog, barking", "Rain"), -5, 4), folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "deep").mkdir()
    for name, num_samples in (("a.flac", 16_000), ("deep/b.flac", 40_000)):
        noise = np.random.default_rng(num_samples).uniform(-0.3, 0.3, num_samples)
        (folder / name).write_bytes(encode_flac(noise.astype(np.float32)))
    return folder


def run_predict(*argv: object) -> int:
    return COMMAND_LINE.main([str(word) for word in argv])


def test_a_folder_becomes_a_table(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    wanted = ("--checkpoint", checkpoint, "--audio", sounds, "--device", "cpu", "--top-k", 2)
    assert run_predict(*wanted, "--format", "csv", "--output", tmp_path / "tags.csv") == 0
    table = pd.read_csv(tmp_path / "tags.csv")
    assert table["file"].tolist() == [f"{sounds}/a.flac"] * 2 + [f"{sounds}/deep/b.flac"] * 2
    assert table["end_s"].tolist() == pytest.approx([0.995, 0.995, 2.495, 2.495])
    assert (table["score"].between(0, 1) & table["label"].isin(["Speech", "Dog, barking", "Rain"])).all()
    assert run_predict(*wanted, "--timeline", "--hop-s", 1, "--format", "jsonl", "--output", tmp_path / "t.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    windows = {(row["start_s"], round(row["end_s"], 2)) for row in rows if "b.flac" in row["file"]}
    assert windows == {(0, 1.28), (1, 2.28), (2, 2.5)}


def test_review_tools_get_a_file_for_each_sound(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    wanted = ("--checkpoint", checkpoint, "--audio", sounds, "--device", "cpu", "--timeline")
    assert run_predict(*wanted, "--format", "raven", "--output", tmp_path) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.flac.selections.txt", "b.flac.selections.txt"]
    assert run_predict(*wanted, "--format", "raven") == 2


def test_bad_files_are_named_after_the_good(
    checkpoint: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    files = (tmp_path / "broken.wav", sounds / "a.flac")
    assert run_predict("--checkpoint", checkpoint, "--device", "cpu", "--audio", *files) == 1
    shown = capsys.readouterr()
    assert f"{sounds}/a.flac\n  0." in shown.out
    assert "1 of 2 files could not be tagged" in shown.err and "broken.wav" in shown.err
