"""The encoder for X-ARES, held against the interface that its own check asks for."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, save_checkpoint
from ast_model.config import ASTConfig
from ast_model.data.augment import normalise
from ast_model.model import AST
from bench.xares_encoder import CHECKPOINT, ASTEncoder
from pipeline.errors import ConfigError
from pipeline.fbank import compute_fbank
from pipeline.store.storage import Store

CONFIG = ASTConfig(num_classes=3, num_frames=128, width=32, depth=2, num_heads=2)
MEAN, STD = -7.0, 3.0


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ASTEncoder:
    torch.manual_seed(0)
    description = {
        "model": vars(CONFIG),
        "labels": {"mids": ["/m/a", "/m/b", "/m/c"], "names": ["a", "b", "c"]},
        "mean": MEAN,
        "std": STD,
        "loss": "bce",
    }
    checkpoint = Checkpoint(LoopState(), AST(CONFIG).state_dict(), description=description)
    folder = save_checkpoint(Store(str(tmp_path)), "run", checkpoint)
    monkeypatch.setenv(CHECKPOINT, str(tmp_path / folder))
    return ASTEncoder()


def make_audio(seconds: float, num_clips: int = 2) -> Tensor:
    return 0.1 * torch.randn(num_clips, round(16_000 * seconds), generator=torch.Generator().manual_seed(1))


def test_steps_of_a_short_clip_are_the_mean_of_the_models_patches(encoder: ASTEncoder) -> None:
    audio_BS = make_audio(1.0)
    fbank_BTM = torch.zeros(2, 128, 128)
    fbank_BTM[:, :98] = compute_fbank(audio_BS - audio_BS.mean(dim=1, keepdim=True))
    with torch.inference_mode():
        patches_BPD = encoder.model.tokens(normalise(fbank_BTM, MEAN, STD))[:, 2:]
    # Patches are ordered frequency by frequency.
    expected_BTD = patches_BPD.reshape(2, *CONFIG.grid, CONFIG.width).mean(dim=1)[:, :10]
    torch.testing.assert_close(encoder(audio_BS), expected_BTD)


@pytest.mark.parametrize(("seconds", "num_steps"), [(0.005, 1), (3.125, 32), (21.0, 210)])
def test_any_length_gives_a_step_for_each_hop(encoder: ASTEncoder, seconds: float, num_steps: int) -> None:
    found_BTD = encoder(make_audio(seconds))
    assert found_BTD.shape == (2, num_steps, encoder.output_dim)
    assert (encoder.sampling_rate, encoder.hop_size_in_ms, encoder.output_dim) == (16_000, 100, 32)
    torch.testing.assert_close(encoder(make_audio(seconds)[0]), found_BTD[:1])


def test_a_checkpoint_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHECKPOINT, raising=False)
    with pytest.raises(ConfigError, match=f"expected a checkpoint in {CHECKPOINT}"):
        ASTEncoder()


@pytest.mark.skipif(importlib.util.find_spec("xares") is None, reason="X-ARES is not installed")
def test_its_own_check_accepts_the_encoder(encoder: ASTEncoder) -> None:
    from xares.audio_encoder_checker import check_audio_encoder  # pyright: ignore[reportMissingImports]

    assert check_audio_encoder(encoder)
