import dataclasses
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from ast_model.config import ASTConfig, Precision, TrainConfig
from ast_model.data.augment import Normalisation
from ast_model.model import AST
from ast_model.training.memory import blank_batch, find_micro_batch, step_bytes
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper
from ast_model.training.trainer import Trainer
from pipeline.errors import ConfigError
from tests.ast_model.training.alone import ALONE, MakeJob

MODEL = ASTConfig(num_frames=256, width=96, depth=4, num_heads=4)
NORM = Normalisation(-4.27, 4.57)
NUM_CLIPS = 8


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_estimated_memory_of_a_step_matches_torchs_memory_tracker(precision: Precision, recompute: bool) -> None:
    config = TrainConfig(
        global_batch_size=NUM_CLIPS,
        micro_batch_size=NUM_CLIPS,
        precision=precision,
        activation_checkpointing=recompute,
    )
    state = TrainingState(AST(MODEL).train(), config, ALONE)
    stepper, batch = Stepper(state, config, NORM, ALONE), blank_batch(MODEL, "fbank", NUM_CLIPS)
    stepper.train_step(0, 0, iter([batch]))  # allocates the optimizer's moments
    tracker = MemTracker()
    tracker.track_external(state.model, state.optimizer)
    with tracker:
        stepper.train_step(0, 1, iter([batch]))
    peak = tracker.get_tracker_snapshot("peak")[ALONE.device]["Total"]
    assert step_bytes(MODEL, config, NUM_CLIPS, ALONE) == pytest.approx(peak, rel=0.15)


def test_activation_checkpointing_at_least_triples_the_micro_batch() -> None:
    kept = TrainConfig(precision="bf16")
    recomputed = dataclasses.replace(kept, activation_checkpointing=True)
    one, other = (
        step_bytes(ASTConfig.base(), config, 2, ALONE) - step_bytes(ASTConfig.base(), config, 1, ALONE)
        for config in (kept, recomputed)
    )
    assert one / other > 3


@pytest.mark.slow
def test_largest_micro_batch_is_found_without_changing_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    backward, tried = Stepper._backward, []

    def run_out_above_five(self: Stepper, batch: Any, *args: Any) -> Any:
        tried.append(len(batch.clips))
        losses_B = backward(self, batch, *args)
        if len(batch.clips) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses_B

    monkeypatch.setattr(Stepper, "_backward", run_out_above_five)
    config = TrainConfig(global_batch_size=16, micro_batch_size="auto", compile="model")
    state = TrainingState(AST(MODEL).train(), config, ALONE)
    weights = {name: value.clone() for name, value in state.model.state_dict().items()}
    assert find_micro_batch(state, config, NORM, ALONE) == 4
    assert tried == [16, 8, 6, 4]
    torch.testing.assert_close(dict(state.model.state_dict()), weights, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in state.model.parameters())
    assert not state.optimizer.state


def test_auto_micro_batch_is_12_on_a_cpu_and_recorded_with_the_run(make_job: MakeJob) -> None:
    trainer = Trainer(make_job(micro_batch_size="auto"), ALONE)
    assert trainer.config.micro_batch_size == trainer.job.describe()["train"]["micro_batch_size"] == 12
    notes: Any = trainer.job.tracker
    assert notes.facts[0]["device.micro_batch_size"] == "12"
    assert float(notes.facts[0]["device.memory_computed_gib"]) > 0
    with pytest.raises(ConfigError, match=r"--train.micro-batch-size must be auto or at least 1, found 0"):
        TrainConfig(micro_batch_size=0)
