import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ast_model.config import CheckpointConfig, RegulariseConfig, ScheduleConfig
from ast_model.distributed import World
from ast_model.training.checks import changed_settings
from ast_model.training.job import Launcher
from ast_model.training.trainer import Trainer
from pipeline.errors import ConfigError, MismatchError, StoppedError
from tests.ast_model.training.alone import ALONE, NUM_STEPS, MakeJob, final_state, train


@dataclass
class StopAt(Launcher):
    """Requests a stop after `num_steps` steps."""

    num_steps: int
    num_asked: int = 0

    def is_stopping(self) -> bool:
        self.num_asked += 1
        return self.num_asked >= self.num_steps


PAST_THE_PAPER: dict[str, Any] = {
    "layer_decay": 0.7,
    "regularise": RegulariseConfig(patchout_freq=2, patchout_time=8, drop_path=0.3),
    "schedule": ScheduleConfig("cosine", num_warmup_steps=2, num_steps_per_stair=1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "stop_at"),
    [
        *(({"average_last_epochs": 2}, stop_at) for stop_at in (1, 4, NUM_STEPS, NUM_STEPS + 3)),
        (PAST_THE_PAPER, 4),
        ({"precision": "fp16"}, 4),
    ],
)
def test_stop_and_resume_gives_identical_weights(make_job: MakeJob, overrides: dict[str, Any], stop_at: int) -> None:
    whole, stopped = (make_job(run, **overrides) for run in ("whole", "stopped"))
    _, history = train(whole)
    with pytest.raises(StoppedError, match="resume with --resume stopped"):
        train(stopped, StopAt(stop_at))
    resumed = make_job("stopped", **overrides)
    trainer = Trainer(resumed, ALONE)
    assert trainer.num_steps_done == stop_at
    resumed_history = trainer.run()
    torch.testing.assert_close(final_state(resumed), final_state(whole), rtol=0, atol=0)
    assert [epoch.keys() for epoch in resumed_history] == [epoch.keys() for epoch in history]
    for epoch, expected in zip(resumed_history, history, strict=True):
        assert epoch == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_kill_loses_only_steps_since_the_last_checkpoint(make_job: MakeJob) -> None:
    @dataclass
    class KillAt(StopAt):
        def is_stopping(self) -> bool:
            if super().is_stopping():
                raise KeyboardInterrupt
            return False

    every_two = {"checkpoints": CheckpointConfig(every_steps=2, every_minutes=None)}
    whole, killed = (make_job(run, **every_two) for run in ("whole", "killed"))
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(killed, KillAt(NUM_STEPS + 5))
    trainer = Trainer(killed, ALONE)
    assert trainer.state.loop.epoch == 1
    assert trainer.state.loop.step >= 2  # the checkpoint of step 4 may still have been in the queue
    trainer.run()
    torch.testing.assert_close(final_state(killed), final_state(whole), rtol=0, atol=0)


def test_resuming_with_changed_model_snapshot_or_too_many_ranks_is_rejected(make_job: MakeJob) -> None:
    job = make_job()
    with pytest.raises(StoppedError):
        train(job, StopAt(1))
    wider = dataclasses.replace(job, model=dataclasses.replace(job.model, width=32))
    with pytest.raises(MismatchError, match=r"other settings .--model.width: 16 then, 32 now"):
        Trainer(wider, ALONE)
    other = dataclasses.replace(job, snapshot=dataclasses.replace(job.snapshot, snapshot_id="other"))
    with pytest.raises(MismatchError, match=r"other settings .--snapshot: .* now"):
        Trainer(other, ALONE)
    with pytest.raises(ConfigError, match="at least one sample per rank, found 4 for 5 ranks"):
        Trainer(job, World(0, 5, torch.device("cpu")))


def test_all_epochs_are_averaged_if_fewer_than_requested(make_job: MakeJob) -> None:
    job = make_job(num_epochs=3, average_last_epochs=20)
    trainer, history = train(job)
    assert trainer.state.loop.num_averaged == 3
    assert "eval/average/mAP" in history[-1]


def test_changed_number_of_epochs_is_rejected_if_it_changes_the_average(make_job: MakeJob) -> None:
    with pytest.raises(StoppedError):
        train(make_job(num_epochs=3, average_last_epochs=2), StopAt(2 * NUM_STEPS + 1))
    longer = make_job(num_epochs=5, average_last_epochs=2)
    with pytest.raises(
        MismatchError, match=r"num-epochs 5 .* average of 0 of the first 2 epochs, but the checkpoint has 1"
    ):
        Trainer(longer, ALONE)


def test_old_records_get_defaults_for_newer_settings(make_job: MakeJob) -> None:
    job = make_job()
    record = json.loads(json.dumps(job.describe()))
    del record["model"]["post_norm"], record["train"]["betas"]
    assert changed_settings(job.settings, record) == {}
    changed = dataclasses.replace(job, config=dataclasses.replace(job.config, betas=(0.9, 0.95)))
    assert list(changed_settings(changed.settings, record)) == ["train.betas"]
