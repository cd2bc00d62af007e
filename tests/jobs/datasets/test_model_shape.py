import dataclasses
from pathlib import Path

import pytest

from ast_model.config import ASTConfig
from ast_model.export import export_safetensors
from ast_model.model import AST
from jobs import esc50
from jobs.datasets.model_shape import adopt_initial_shape, log_classes


def test_model_of_a_data_set_adopts_the_shape_of_its_initial_weights(tmp_path: Path) -> None:
    shape = ASTConfig(3, num_frames=256, freq_stride=16, time_stride=16, width=24, depth=1, num_heads=1)
    export_safetensors(AST(shape), tmp_path / "ast.safetensors")
    config = esc50.preset()
    assert adopt_initial_shape(config) == config
    train = dataclasses.replace(config.train, init=str(tmp_path / "ast.safetensors"))
    found = adopt_initial_shape(dataclasses.replace(config, train=train)).model
    assert (found.num_classes, found.num_frames, found.width, found.depth) == (50, 512, 24, 1)
    model = dataclasses.replace(config.model, time_stride=12)
    changed = adopt_initial_shape(dataclasses.replace(config, train=train, model=model)).model
    assert (changed.time_stride, changed.freq_stride) == (12, 16)


def test_missing_classes_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    log_classes(esc50.preset(), [str(number) for number in range(10)])
    assert "esc50: found 10 of 50 classes" in caplog.text
