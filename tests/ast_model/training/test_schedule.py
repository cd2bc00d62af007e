import pytest
import torch

from ast_model import recipes
from ast_model.config import ScheduleConfig
from ast_model.training.schedule import learning_rate_factor
from pipeline.errors import ConfigError

BALANCED = recipes.audioset_balanced().train.schedule
FULL = recipes.audioset_full().train.schedule
ESC50 = recipes.esc50().train.schedule
# The run of the published log had 30 epochs and decayed at the ends of epochs 5 to 25 only.
SPEECH_COMMANDS = recipes.speechcommands().train.schedule

# Learning rates at the end of each epoch: the last column of result.csv in AST's published logs.
BALANCED_LOG = [5e-5] * 10 + [2.5e-5] * 5 + [1.25e-5] * 5 + [6.25e-6] * 5
FULL_LOG = [1e-5, 1e-5, 5e-6, 2.5e-6, 1.25e-6]
ESC50_LOG = [1e-5] * 5 + [
    *(8.499999999999999933e-06, 7.224999999999999435e-06, 6.141249999999999858e-06, 5.220062499999999287e-06),
    *(4.437053124999999521e-06, 3.771495156249999677e-06, 3.205770882812499323e-06, 2.724905250390624637e-06),
    *(2.316169462832031068e-06, 1.968744043407226429e-06, 1.673432436896142507e-06, 1.422417571361721004e-06),
    *(1.209054935657462843e-06, 1.027696695308843353e-06, 8.735421910125168499e-07, 7.425108623606393119e-07),
    *(6.311342330065433992e-07, 5.364640980555618311e-07, 4.559944833472275564e-07, 3.875953108451434124e-07),
]
SPEECH_COMMANDS_LOG = [2.5e-4] * 5 + [
    *(2.124999999999999882e-04, 1.806249999999999859e-04, 1.535312499999999948e-04, 1.305015624999999915e-04),
    *(1.109263281249999914e-04, 9.428737890624999066e-05, 8.014427207031248393e-05, 6.812263125976560660e-05),
    *(5.790423657080076358e-05, 4.921860108518064802e-05, 4.183581092240354913e-05, 3.556043928404301811e-05),
    *(3.022637339143656302e-05, 2.569241738272107789e-05, 2.183855477531291468e-05, 1.856277155901597697e-05),
    *(1.577835582516358127e-05, 1.341160245138904408e-05, 1.139986208368068722e-05, 9.689882771128584303e-06),
    *[8.236400355459296997e-06] * 5,
]


@pytest.mark.parametrize(
    ("config", "num_steps_per_epoch", "logged"),
    [
        (BALANCED, 1_733, BALANCED_LOG),
        (FULL, 162_757, FULL_LOG),
        (ESC50, 34, ESC50_LOG),
        (SPEECH_COMMANDS, 663, SPEECH_COMMANDS_LOG),
    ],
    ids=["balanced", "full", "esc50", "speechcommands"],
)
def test_learning_rates_match_the_official_logs(
    config: ScheduleConfig, num_steps_per_epoch: int, logged: list[float]
) -> None:
    last_steps = [(epoch + 1) * num_steps_per_epoch - 1 for epoch in range(len(logged))]
    rates = [logged[0] * learning_rate_factor(step, epoch, config) for epoch, step in enumerate(last_steps)]
    assert rates == pytest.approx(logged, rel=1e-12)


def test_warmup_matches_the_official_log() -> None:
    # Learning rates that the log of the balanced run prints at every 50th step, to six decimals.
    printed = "00 03 05 08 10 13 15 17 20 23 25 28 30 33 35 38 40 43 45 48 50".split()
    rates = [5e-5 * learning_rate_factor(step, 0, BALANCED) for step in range(0, 1001, 50)]
    assert [f"{rate:f}" for rate in rates] == [f"0.0000{digits}" for digits in printed]


def test_every_step_equals_torchs_scheduler_after_warmup_stairs() -> None:
    rate, num_steps_per_epoch = 5e-5, 300
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], rate)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 15, 20, 25], gamma=0.5)
    step = 0
    for epoch in range(25):
        for _ in range(num_steps_per_epoch):
            if step <= 1000 and step % 50 == 0:
                optimizer.param_groups[0]["lr"] = rate * step / 1000
            expected = optimizer.param_groups[0]["lr"]
            assert rate * learning_rate_factor(step, epoch, BALANCED) == pytest.approx(expected, rel=1e-12)
            step += 1
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "settings", [{"num_steps_per_stair": 0}, {"num_warmup_steps": -1}, {"decay_factor": 0.0}, {"decay_factor": 1.5}]
)
def test_impossible_schedules_are_rejected(settings: dict) -> None:
    with pytest.raises(ConfigError):
        ScheduleConfig(**settings)
