import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ast_model.config import ASTConfig, Attention, TrainConfig
from ast_model.distributed import World
from ast_model.model import AST
from ast_model.recipes import audioset_full
from ast_model.training import device
from ast_model.training.device import AttentionKernels, choose_attention, choose_compile, set_matmul_precision
from ast_model.training.job import TrainingJob
from ast_model.training.trainer import Trainer
from pipeline.errors import ConfigError

ALONE = World(0, 1, torch.device("cpu"))
GPU = World(0, 1, torch.device("cuda", 0))
TINY = ASTConfig(num_classes=4, num_frames=128, freq_stride=16, time_stride=16, width=16, depth=1, num_heads=2)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((9, 0), "bf16")],
)
def test_auto_precision_is_bf16_on_gpus_that_support_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert GPU.resolve("auto") == expected
    assert (GPU.resolve("bf16"), GPU.resolve("tf32"), ALONE.resolve("auto")) == ("bf16", "tf32", "fp32")
    assert not ALONE.autocast("tf32")._enabled


def test_float32_products_are_exact_except_with_tf32() -> None:
    try:
        set_matmul_precision(TrainConfig(precision="tf32"))
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        set_matmul_precision(TrainConfig())
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)


def test_auto_compiles_blocks_on_a_gpu_with_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    train = audioset_full().train
    monkeypatch.setattr(device, "find_spec", lambda name: name == "triton")
    monkeypatch.setattr(device.shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    assert (choose_compile(train, GPU), choose_compile(train, ALONE)) == ("blocks", "none")
    assert choose_compile(dataclasses.replace(train, compile="model"), ALONE) == "model"
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert choose_compile(train, GPU) == "none"


def test_auto_chooses_the_fastest_working_attention_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seconds, asked = {"cudnn": 0.002, "flash": 0.001, "efficient": None, "math": 0.009}, []

    def time_kernels(name: str, *shape_and_device: object) -> float | None:
        asked.append(shape_and_device)
        return seconds[name]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(device, "seconds_of_attention", time_kernels)
    attention = choose_attention(TrainConfig(global_batch_size=96, micro_batch_size=48), TINY, GPU)
    assert (attention.name, attention.next_best) == ("flash", "cudnn")
    assert asked[0] == ((32, 2, TINY.num_tokens, 8), torch.bfloat16, GPU.device)
    choose_attention(TrainConfig(global_batch_size=96, micro_batch_size=96), TINY, GPU)
    assert len(asked) == 4, "measured once for a shape and device"
    assert "attention: flash" in caplog.text
    assert "flash 1.00 ms, cudnn 2.00 ms, math 9.00 ms" in caplog.text


def test_cpu_uses_torchs_choice_or_the_named_kernels() -> None:
    assert choose_attention(TrainConfig(), TINY, ALONE).name == "torch's choice"
    names: list[Attention] = ["flash", "math"]
    for name in names:
        assert choose_attention(TrainConfig(attention=name), TINY, ALONE).name == name
    with pytest.raises(ConfigError, match=r"kernel for --train.attention cudnn"):
        choose_attention(TrainConfig(attention="cudnn"), TINY, ALONE)


@pytest.mark.slow
def test_all_attention_kernels_give_the_same_losses(make_job: Callable[..., TrainingJob]) -> None:
    losses = {
        name: [history["train/epoch_loss"] for history in Trainer(make_job(name, attention=name), ALONE).run()]
        for name in ("auto", "flash", "math")
    }
    assert losses["flash"] == pytest.approx(losses["auto"], rel=1e-3)
    assert losses["math"] == pytest.approx(losses["auto"], rel=1e-3)


def attend_badly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with a backward pass that overflows."""
    mixed = nnf.scaled_dot_product_attention(query, key, value)
    mixed.register_hook(lambda gradient: gradient * math.inf)
    return mixed


def test_kernels_with_non_finite_gradients_are_replaced(
    make_job: Callable[..., TrainingJob], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(make_job(), ALONE)
    trainer.stepper.attention = AttentionKernels(
        ["cudnn", "flash"], {"cudnn": attend_badly, "flash": nnf.scaled_dot_product_attention}
    )
    history = trainer.run()
    # The first window of two steps is read while the third step runs.
    assert trainer.state.loop.num_steps_skipped == 3
    assert all(math.isfinite(epoch["train/epoch_loss"]) for epoch in history)
    assert (
        "attention by cudnn gives a non-finite gradient in epoch 1, step 2, but attention by flash a finite one"
        in caplog.text
    )
    notes: Any = trainer.job.tracker
    assert [facts["device.attention"] for facts in notes.facts] == ["torch's choice", "flash"]
    assert notes.metrics[-1][1]["train/attention_changes"] == 1


@pytest.mark.slow
def test_compiled_attention_follows_a_change_of_kernels() -> None:
    model, graphs = AST(TINY), []

    def keep(graph: Any, inputs: object) -> Any:
        graphs.append(graph.code)
        return graph

    model.blocks[0].compile(backend=keep)
    attention = AttentionKernels(["flash", "math"])

    @torch.no_grad
    def forward() -> None:
        with attention.used_by(model):
            model(torch.zeros(1, 128, 128))

    forward()
    attention.change()
    forward()
    forward()
    torch.compiler.reset()
    # The kernels are part of the graph, which is the key of the compile cache.
    assert len(graphs) == 2
    assert graphs[0] != graphs[1]


def test_kernels_stay_if_the_next_best_fail_as_well(make_job: Callable[..., TrainingJob]) -> None:
    trainer = Trainer(dataclasses.replace(make_job(max_bad_steps=100)), ALONE)
    trainer.stepper.attention = AttentionKernels(["cudnn", "flash"], {"cudnn": attend_badly, "flash": attend_badly})
    trainer.run()
    assert (trainer.stepper.attention.name, trainer.stepper.attention.num_changes) == ("cudnn", 0)
