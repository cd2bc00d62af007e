"""A training step must not wait for the device. Operations that would wait are counted on the CPU."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ast_model import recipes
from ast_model.config import TrainConfig
from ast_model.data.augment import Normalisation
from ast_model.data.loader import Batch
from ast_model.data.sampling import NUM_UNIFORMS
from ast_model.distributed import World
from ast_model.model import AST
from ast_model.training import step as step_module
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper

ALONE = World(0, 1, torch.device("cpu"))
RECIPES = [
    name
    for name, value in vars(recipes).items()
    if inspect.isfunction(value) and inspect.signature(value).return_annotation is recipes.Recipe
]
NUM_SAMPLES = 2
"""Samples per micro-batch. A step has two micro-batches."""


class CountMethods(TorchFunctionMode):
    """Counts methods that convert tensors to Python values, which call no kernel on a CPU."""

    def __init__(self, found: list[str]):
        self.found = found

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class CountKernels(TorchDispatchMode):
    """Counts kernels with results, or sizes of results, that the CPU would wait for."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        waits = name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal")
        if name in ("index", "index_put", "index_put_"):  # indexing by a mask: the size depends on its values
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        if waits:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def small(recipe: recipes.Recipe) -> tuple[AST, TrainConfig]:
    shape = dataclasses.replace(recipe.model, num_frames=512, width=16, depth=2, num_heads=2, num_classes=3)
    sizes = {"global_batch_size": 2 * NUM_SAMPLES, "micro_batch_size": NUM_SAMPLES}
    return AST(shape), dataclasses.replace(recipe.train, **sizes)


def make_batch(model: AST, config: TrainConfig) -> Batch:
    num_frames, random = model.config.num_frames, np.random.default_rng(0)
    shape = (NUM_SAMPLES, num_frames, 128) if config.features == "fbank" else (NUM_SAMPLES, 400 + 160 * num_frames)
    values = random.normal(-4, 2, shape)
    clips = torch.from_numpy(values.astype(np.float16 if config.features == "fbank" else np.int16))
    targets_BC = torch.zeros(NUM_SAMPLES, model.config.num_classes)
    targets_BC[:, 0] = 1
    return Batch(
        features=config.features,
        num_frames=num_frames,
        rows=np.arange(NUM_SAMPLES),
        clips=clips,
        lengths_B=torch.full((NUM_SAMPLES,), shape[1]),
        targets_BC=targets_BC,
        mixed=torch.tensor([1]),
        partners=clips[:1],
        partner_lengths_Q=torch.tensor([shape[1] // 2]),
        lambda_Q=torch.tensor([0.4]),
        uniforms=torch.rand(NUM_SAMPLES, NUM_UNIFORMS),
    )


def count_waits(recipe: recipes.Recipe, **settings: Any) -> list[str]:
    """Return the operations of a second step that would wait for a GPU."""
    model, config = small(recipe)
    config = dataclasses.replace(config, **settings)
    stepper = Stepper(TrainingState(model, config, ALONE), config, Normalisation(-4.27, 4.57), ALONE)
    batches = [make_batch(model, config) for _ in range(4)]
    stepper.train_step(0, 0, iter(batches[:2]))
    found: list[str] = []
    with CountMethods(found), CountKernels(found):
        result = stepper.train_step(0, 1, iter(batches[2:]))
    assert result.loss.isfinite()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_no_recipe_waits_for_the_device_in_a_step(name: str, precision: str) -> None:
    assert count_waits(getattr(recipes, name)(), precision=precision) == []


def test_step_on_waveforms_does_not_wait_for_the_device() -> None:
    assert count_waits(recipes.audioset_balanced(), features="waveform") == []


def test_all_recipes_are_covered() -> None:
    assert set(RECIPES) == {"demo", *recipes.NUM_CLIPS}


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda fbank_BTM: fbank_BTM.max().item(), "_local_scalar_dense"),
        (lambda fbank_BTM: fbank_BTM[0, 0].tolist(), "tolist"),
        (lambda fbank_BTM: fbank_BTM.cpu(), "cpu"),
        (lambda fbank_BTM: fbank_BTM[fbank_BTM > 0], "index"),
        (lambda fbank_BTM: fbank_BTM.nonzero(), "nonzero"),
        (lambda fbank_BTM: 1 if fbank_BTM.isnan().any() else 0, "__bool__"),
    ],
)
def test_planted_wait_is_found(monkeypatch: pytest.MonkeyPatch, wait: Callable[[Tensor], Any], name: str) -> None:
    mix = step_module.mix

    def mix_and_wait(batch: Batch) -> Tensor:
        fbank_BTM = mix(batch)
        wait(fbank_BTM)
        return fbank_BTM

    monkeypatch.setattr(step_module, "mix", mix_and_wait)
    assert name in count_waits(recipes.demo())
