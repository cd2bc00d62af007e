from pathlib import Path

import numpy as np
import pytest

from ast_model.config import ASTConfig
from ast_model.export import export_hugging_face
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from jobs.export import COMMAND_LINE

SHAPE = ASTConfig(3, num_frames=128, freq_stride=16, time_stride=16, width=48, depth=1, num_heads=3)


@pytest.mark.parametrize(("name", "target"), [("hugging_face", "ast"), ("safetensors", "ast.safetensors")])
def test_export_gives_the_same_tags_as_its_source(tmp_path: Path, name: str, target: str) -> None:
    export_hugging_face(AST(SHAPE), ModelMetadata(("Speech", "Dog, barking", "Rain"), -5, 4, "ce"), tmp_path / "source")
    flags = ["--checkpoint", str(tmp_path / "source"), "--output", str(tmp_path / target)]
    assert COMMAND_LINE.main([name, *flags]) == 0
    source, exported = (Tagger.load(tmp_path / place, device="cpu") for place in ("source", target))
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    assert exported.metadata == source.metadata
    np.testing.assert_allclose(exported.scores([sound]), source.scores([sound]), atol=1e-6)
    assert COMMAND_LINE.main([name, *flags]) == 1  # nothing is overwritten
