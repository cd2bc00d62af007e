"""Training and its parts on a GPU, compared with the CPU.

`python -m bench.gpu` runs this file with few packages besides torch, so the tests use neither shared fixtures
(`--noconftest`) nor test dependencies. Without a GPU they compare the CPU with itself.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from ast_model.checkpoints.async_writer import CheckpointBuffers
from ast_model.checkpoints.checkpoint import Checkpoint, LoopState
from ast_model.config import ASTConfig, AugmentConfig, CheckpointConfig, RegulariseConfig, ScheduleConfig, TrainConfig
from ast_model.data.augment import Normalisation, augment
from ast_model.data.feed import feed
from ast_model.data.loader import Batch
from ast_model.data.sampling import NUM_UNIFORMS
from ast_model.distributed import World
from ast_model.model import AST
from ast_model.training.job import Launcher, TrainingJob
from ast_model.training.memory import blank_batch, find_micro_batch
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper
from ast_model.training.trainer import Trainer
from bench.stores import make_store
from pipeline.errors import StoppedError
from pipeline.fbank import compute_fbank
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
WORLD = World(0, 1, DEVICE)
NUM_FRAMES = 128
MODEL = ASTConfig(num_frames=NUM_FRAMES, freq_stride=16, time_stride=16, width=64, depth=2, num_heads=1)


class NoTracker:
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_late_params(self, facts: Mapping[str, str]) -> None: ...

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None: ...


class StopAfter(Launcher):
    def __init__(self, num_steps: int):
        self.num_steps = num_steps

    def is_stopping(self) -> bool:
        self.num_steps -= 1
        return self.num_steps == 0


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return make_store(Store(str(tmp_path_factory.mktemp("store"))), num_shards=2, clips_per_shard=16)


def make_job(snapshot: Snapshot, run: str, **settings: Any) -> TrainingJob:
    config = TrainConfig(
        train_splits=("balanced_train",),
        eval_split="balanced_train",
        num_epochs=1,
        global_batch_size=4,
        micro_batch_size=4,
        learning_rate=1e-3,
        schedule=ScheduleConfig(num_warmup_steps=0),
        checkpoints=CheckpointConfig(every_minutes=None),
        precision="fp32",
        log_every_steps=1,
        allow_empty_classes=True,
    )
    return TrainingJob(dataclasses.replace(config, **settings), MODEL, snapshot, run, NoTracker())


def weights_after(job: TrainingJob) -> dict[str, Tensor]:
    trainer = Trainer(job, WORLD)
    trainer.run()
    # Biases of keys do not affect attention: their gradient is rounding noise, and Adam scales it up to full steps.
    weights = trainer.state.model.state_dict()
    return {name: value for name, value in weights.items() if not name.endswith("qkv.bias")}


def make_batch(size: int) -> Batch:
    random = np.random.default_rng(0)
    clips = torch.from_numpy(random.normal(-4, 4, (size, NUM_FRAMES, 128)).astype(np.float16))
    mixed = torch.arange(0, size, 2)
    lengths_B = torch.from_numpy(random.integers(NUM_FRAMES // 2, NUM_FRAMES, size))
    return Batch(
        features="fbank",
        num_frames=NUM_FRAMES,
        rows=np.arange(size),
        clips=clips,
        lengths_B=lengths_B,
        targets_BC=torch.zeros(size, 1),
        mixed=mixed,
        partners=clips[mixed].flip(0),
        partner_lengths_Q=lengths_B[mixed].flip(0),
        lambda_Q=torch.from_numpy(random.beta(10, 10, len(mixed)).astype(np.float32)),
        uniforms=torch.from_numpy(random.random((size, NUM_UNIFORMS), dtype=np.float32)),
    )


def test_batched_fbanks_match_torchaudio_under_autocast() -> None:
    random = np.random.default_rng(0)
    waveform_BS = torch.from_numpy((random.standard_normal((4, 160_000)) * 0.1).astype(np.float32))
    waveform_BS[1] = 0
    exact_BTM = torch.stack(
        [
            kaldi.fbank(
                waveform_S[None],
                htk_compat=True,
                sample_frequency=16000,
                use_energy=False,
                window_type="hanning",
                num_mel_bins=128,
                dither=0.0,
                frame_shift=10,
            )
            for waveform_S in waveform_BS.double()
        ]
    )
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found_BTM = compute_fbank(waveform_BS.to(DEVICE)).cpu().double()
    # The error of a float32 Fourier transform scales with the whole frame, so nearly empty bins have a larger error in
    # their logarithm. torchaudio's float32 and float64 differ by 6e-7 of a frame's loudest bin, up to 1e-3 in the
    # logarithm.
    loudest_BT1 = exact_BTM.exp().amax(dim=2, keepdim=True)
    torch.testing.assert_close(found_BTM.exp() / loudest_BT1, exact_BTM.exp() / loudest_BT1, rtol=0, atol=1e-6)
    is_audible = exact_BTM.exp() > 1e-3 * loudest_BT1
    torch.testing.assert_close(found_BTM[is_audible], exact_BTM[is_audible], rtol=0, atol=1e-4)
    assert (found_BTM - exact_BTM).abs().quantile(0.999) < 1e-4


def test_augmentation_matches_the_cpu() -> None:
    config = AugmentConfig(noise=True, max_roll_frames=10)
    expected_BTM = augment(make_batch(8), config, -4.27, 4.57)
    found_BTM = augment(make_batch(8).to(DEVICE), config, -4.27, 4.57).cpu()
    torch.testing.assert_close(found_BTM, expected_BTM, rtol=0, atol=1e-5)


def test_fed_batches_are_complete_and_in_order() -> None:
    sent = [dataclasses.replace(make_batch(8), lengths_B=torch.full((8,), number)) for number in range(5)]
    arrived = []
    for batch in feed(iter(sent), DEVICE):
        assert all(tensor.device == DEVICE for tensor in batch.tensors().values())
        # The sum may still read this batch while the next one is copied, so the copy must use other memory.
        arrived.append((batch.clips.float().sum(), batch.lengths_B.clone()))
        del batch
    assert len(arrived) == len(sent)
    for (total, lengths_B), batch in zip(arrived, sent, strict=True):
        torch.testing.assert_close(total.cpu(), batch.clips.float().sum(), rtol=1e-4, atol=1e-2)
        assert torch.equal(lengths_B.cpu(), batch.lengths_B)


@pytest.mark.parametrize(("dtype", "atol"), [(None, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_logits_match_the_cpu_within_the_precision(dtype: torch.dtype | None, atol: float) -> None:
    torch.manual_seed(0)
    model, fbank_BTM = AST(MODEL).eval(), torch.randn(4, NUM_FRAMES, 128)
    torch.nn.init.normal_(model.head.linear.weight, std=0.1)
    with torch.inference_mode():
        expected_BC = model(fbank_BTM)
        assert expected_BC.std() > 0.5
        with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            found_BC = model.to(DEVICE)(fbank_BTM.to(DEVICE)).cpu()
    torch.testing.assert_close(found_BC, expected_BC, rtol=0, atol=atol)


def test_resumed_training_matches_an_uninterrupted_one(snapshot: Snapshot) -> None:
    whole = weights_after(make_job(snapshot, "whole"))
    job = make_job(snapshot, "stopped")
    with pytest.raises(StoppedError):
        Trainer(job, WORLD, StopAfter(3)).run()
    torch.testing.assert_close(weights_after(job), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"micro_batch_size": 1}, {"activation_checkpointing": True}])
def test_micro_batches_and_recomputation_give_the_same_weights(snapshot: Snapshot, settings: dict[str, Any]) -> None:
    regularise = RegulariseConfig(patchout_freq=2, patchout_time=4, drop_path=0.3)
    one = weights_after(make_job(snapshot, f"one-{settings}", regularise=regularise))
    other = weights_after(make_job(snapshot, f"other-{settings}", regularise=regularise, **settings))
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_non_finite_step_is_skipped(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    move, calls = Batch.to, []

    def move_spoilt(self: Batch, device: torch.device) -> Batch:
        calls.append(self)
        clips = self.clips * math.nan if len(calls) == 3 else self.clips
        return move(dataclasses.replace(self, clips=clips), device)

    monkeypatch.setattr(Batch, "to", move_spoilt)
    trainer = Trainer(make_job(snapshot, precision, precision=precision), WORLD)
    trainer.run()
    assert trainer.state.loop.num_steps_skipped == 1
    assert all(value.isfinite().all() for value in trainer.state.model.state_dict().values())
    assert {int(slots["step"]) for slots in trainer.state.optimizer.state.values()} == {trainer.plan.num_steps - 1}
    if precision == "fp16":  # halved once, for the skipped step
        assert trainer.state.scaler.get_scale() == 2**15


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two ranks need two GPUs or none")
def test_two_ranks_have_the_gradient_of_one_rank(snapshot: Snapshot, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, str(ROOT / "tests/gpu/gradients.py")]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command += [snapshot.store.root, str(tmp_path / "out.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["num_ranks"] == 2
    assert found["fp32"] < 1e-5
    assert found["bf16"] < 2**-7  # each rank rounds its part of the gradient to 8 bits


def test_staged_checkpoint_is_unaffected_by_the_next_step() -> None:
    staging, weights = CheckpointBuffers(), torch.randn(1000, 1000, device=DEVICE)
    for _ in range(2):
        expected = weights.clone().cpu()
        staged, is_copied = staging.copy(Checkpoint(LoopState(), {"weights": weights}))
        weights += 1
        if is_copied is not None:
            is_copied.synchronize()
        torch.testing.assert_close(staged.model["weights"], expected, rtol=0, atol=0)
        assert staged.model["weights"].is_pinned() == (DEVICE != CPU)


@pytest.mark.skipif(DEVICE == CPU, reason="needs a GPU with a memory limit")
def test_largest_micro_batch_leaves_memory_for_a_step() -> None:
    config = TrainConfig(global_batch_size=512, micro_batch_size="auto")
    state = TrainingState(AST(ASTConfig.tiny()), config, WORLD)
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 16 * 2**30 / total))
    try:
        found = find_micro_batch(state, config, Normalisation(-4.27, 4.57), WORLD)
        assert 1 < found < 512
        config = dataclasses.replace(config, global_batch_size=found, micro_batch_size=found)
        stepper = Stepper(state, config, Normalisation(-4.27, 4.57), WORLD)
        batch = blank_batch(state.model.config, "fbank", found)
        assert stepper.train_step(0, 0, iter([batch])).loss.isfinite()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.skipif(DEVICE == CPU, reason="needs a GPU that works asynchronously")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_step_never_waits_for_the_gpu(precision: str) -> None:
    config = TrainConfig(
        global_batch_size=8,
        micro_batch_size=4,
        augment=AugmentConfig(noise=True, max_roll_frames=10),
        regularise=RegulariseConfig(patchout_freq=2, patchout_time=2, drop_path=0.3),
        precision=precision,  # pyright: ignore[reportArgumentType]
    )
    state = TrainingState(AST(dataclasses.replace(MODEL, num_classes=1)), config, WORLD)
    stepper = Stepper(state, config, Normalisation(-4.27, 4.57), WORLD)
    batches = [make_batch(4) for _ in range(6)]
    stepper.train_step(0, 0, iter(batches[:2]))  # allocates memory and creates the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (1, 2):
            stepper.train_step(0, step, iter(batches[2 * step : 2 * step + 2]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
