from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ast_model.config import ASTConfig
from ast_model.flops import forward_flops
from ast_model.model import AST, adapt_positions
from pipeline.errors import ConfigError, InputError

SMALL = ASTConfig(num_classes=7, num_frames=128, width=24, depth=2, num_heads=3)


@pytest.fixture(scope="module")
def model() -> AST:
    torch.manual_seed(0)
    return AST(SMALL).eval()


def count_parameters(make_model: Callable[[], torch.nn.Module]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make_model().parameters())


@pytest.mark.parametrize(
    ("config", "width", "num_heads"),
    [(ASTConfig.tiny(), 192, 3), (ASTConfig.small(), 384, 6), (ASTConfig.base(), 768, 12)],
)
def test_sizes_equal_deit(config: ASTConfig, width: int, num_heads: int) -> None:
    shape: dict[str, Any] = {"hidden_size": width, "num_attention_heads": num_heads, "intermediate_size": 4 * width}
    theirs = transformers.ASTConfig(**shape, id2label=dict.fromkeys(range(527), ""))
    expected = count_parameters(lambda: transformers.ASTForAudioClassification(theirs))
    assert count_parameters(lambda: AST(config)) == expected
    assert config.num_heads == num_heads


def test_base_has_the_number_of_parameters_of_the_paper() -> None:
    assert count_parameters(lambda: AST(ASTConfig.base())) / 1e6 == pytest.approx(86.594, abs=5e-4)


@pytest.mark.parametrize(
    ("stride", "num_frames", "grid"),
    [(10, 1024, (12, 101)), (12, 1024, (10, 85)), (14, 1024, (9, 73)), (16, 1024, (8, 64)), (10, 128, (12, 12))],
)
def test_grids_equal_the_published_models(stride: int, num_frames: int, grid: tuple[int, int]) -> None:
    assert ASTConfig(freq_stride=stride, time_stride=stride, num_frames=num_frames).grid == grid


def test_flops_equal_the_count_of_torch(model: AST) -> None:
    # On a CPU, torch counts only the plain attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 128, 128))
    assert counter.get_total_flops() == forward_flops(SMALL)
    # All tokens of the last block would cost 261e9, but the head reads two.
    assert forward_flops(ASTConfig.base()) == pytest.approx(242e9, rel=0.001)


def test_embedding_is_the_mean_of_the_extra_tokens_and_feeds_the_head(model: AST) -> None:
    fbank = torch.randn(2, 128, 128)
    tokens = model.tokens(fbank)
    assert tokens.shape == (2, SMALL.num_tokens, 24)
    torch.testing.assert_close(model.embed(fbank), (tokens[:, 0] + tokens[:, 1]) / 2)
    torch.testing.assert_close(model(fbank), model.head(model.embed(fbank)))
    with torch.inference_mode():  # the last block computes only these two
        torch.testing.assert_close(model.embed(fbank), (tokens[:, 0] + tokens[:, 1]) / 2)


@pytest.mark.parametrize("num_frames", [16, 47, 96, 200, 1024])
def test_other_lengths_equal_a_model_with_adapted_positions(model: AST, num_frames: int) -> None:
    fitting = AST(ASTConfig(**{**vars(SMALL), "num_frames": num_frames})).eval()
    weights = model.state_dict()
    weights["positions"] = adapt_positions(weights["positions"], SMALL.grid, fitting.config.grid)
    fitting.load_state_dict(weights)
    fbank = torch.randn(1, num_frames, 128)
    torch.testing.assert_close(model(fbank), fitting(fbank))


def test_shrinking_positions_are_cropped_at_the_centre() -> None:
    extra, grid = torch.tensor([100.0, 200.0]), torch.arange(12.0).reshape(3, 4)
    positions = torch.cat([extra, grid.flatten()]).reshape(1, 14, 1)
    # Of four columns the middle two start at 4 // 2 - 2 // 2 = 1; of three rows the middle one is at 1.
    adapted = adapt_positions(positions, (3, 4), (1, 2))
    assert adapted.flatten().tolist() == [100, 200, 5, 6]
    # Three of four columns start at 4 // 2 - 3 // 2 = 1, not at 0.
    assert adapt_positions(positions, (3, 4), (1, 3)).flatten().tolist() == [100, 200, 5, 6, 7]


def test_growing_positions_are_interpolated() -> None:
    positions = torch.tensor([100.0, 200.0, 0.0, 4.0, 8.0, 12.0]).reshape(1, 6, 1)
    # Four new columns have their centres at -0.25, 0.25, 0.75 and 1.25 of the old ones; the border is held.
    adapted = adapt_positions(positions, (2, 2), (2, 4))
    assert adapted.flatten().tolist() == [100, 200, 0, 1, 3, 4, 8, 9, 11, 12]
    # One axis may grow while the other shrinks: of two rows the second is kept.
    assert adapt_positions(positions, (2, 2), (1, 4)).flatten().tolist() == [100, 200, 8, 9, 11, 12]


def test_gradient_reaches_adapted_positions(model: AST) -> None:
    model.zero_grad()
    model(torch.randn(1, 200, 128)).sum().backward()
    assert model.positions.grad is not None
    assert model.positions.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 15, 128), (2, 128, 64), (128, 128)])
def test_fbank_of_a_wrong_shape_is_refused(model: AST, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"16 or more frames, 128 bins.*but found"):
        model(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, r"--model.num-heads must divide --model.width 768, found 5"),
        ({"freq_stride": 0}, r"--model.freq-stride must be above 0, found 0"),
        ({"num_frames": 12}, "16 bins × 16 frames must fit"),
    ],
)
def test_impossible_settings_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ASTConfig(**settings)
