import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs import audioset
from jobs.launch.cli import CommandLine, configure_logging, parse_config, resolve_root
from pipeline.errors import ConfigError, InputError, LeaseError


@dataclass(frozen=True)
class Inner:
    num_epochs: int = 3
    """Epochs in all."""

    def __post_init__(self) -> None:
        if self.num_epochs < 1:
            raise ConfigError(f"num_epochs must be at least 1, found {self.num_epochs}")


@dataclass(frozen=True)
class Config:
    root: str = "data"
    train: Inner = field(default_factory=Inner)


PRESETS = {"demo": Config, "audioset_full": lambda: Config("full", Inner(5))}


class FailingCommandLine(CommandLine):
    """Of a job that ends with an error, if there is one."""

    error: BaseException | None = None

    def load(self, config: Config) -> Callable[[Config], None]:
        def job(config: Config) -> None:
            if self.error:
                raise self.error

        return job


def run(argv: list[str], error: BaseException | None = None) -> int:
    command_line = FailingCommandLine("", PRESETS)
    command_line.error = error
    return command_line.main(argv)


def test_flags_override_the_preset() -> None:
    assert parse_config(PRESETS, "demo", []) == Config()
    assert parse_config(PRESETS, "demo", ["--root", "there"]) == Config("there")
    assert parse_config(PRESETS, "demo", ["audioset_full", "--train.num-epochs", "7"]) == Config("full", Inner(7))


@pytest.mark.parametrize("preset", audioset.PRESETS)
def test_the_main_jobs_presets_are_whole(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = audioset.PRESETS[preset]()
    assert parse_config(audioset.PRESETS, "demo", [preset]) == expected
    with pytest.raises(SystemExit) as end:
        parse_config(audioset.PRESETS, "demo", [preset, "--help"])
    assert end.value.code == 0
    assert "Samples per step, over all ranks." in " ".join(capsys.readouterr().out.replace("│", "").split())


def test_an_unknown_preset_is_said_with_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audioset_ful"]) == 2
    message = capsys.readouterr().err
    assert "expected a preset, one of demo, audioset_full, found 'audioset_ful'; did you mean audioset_full?" in message
    assert "Traceback" not in message
    assert run(["xyz"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_an_unknown_flag_is_said_with_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["demo", "--train.num-epoch", "7"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "--train.num-epoch" in message
    assert "--train.num-epochs" in message.replace("--train.num-epoch ", "")


def test_a_value_of_the_wrong_kind_names_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["demo", "--train.num-epochs", "many"])
    assert end.value.code == 2
    assert "--train.num-epochs" in capsys.readouterr().err


def test_an_impossible_setting_ends_with_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--train.num-epochs", "0"]) == 2
    message = capsys.readouterr().err
    assert "num_epochs must be at least 1, found 0" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (InputError("row 3 is odd"), 1, "InputError: row 3 is odd"),
        (ConfigError("no such thing"), 2, "ConfigError: no such thing"),
        (LeaseError("held"), 75, "LeaseError: held"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
    ],
)
def test_exit_codes_tell_how_it_ended(
    error: BaseException | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([], error) == code
    assert message in capsys.readouterr().err


def test_a_bug_is_not_caught() -> None:
    with pytest.raises(ZeroDivisionError):
        run([], ZeroDivisionError())


def test_roots_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert resolve_root("data/demo") == str(tmp_path / "data/demo")
    assert resolve_root("/there") == "/there"
    assert resolve_root("s3://bucket/x") == "s3://bucket/x"
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_root("~/x") == "/home/someone/x"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert resolve_root("data") == "/home/someone/audioset-ast/data"


def test_what_a_jobs_own_module_logs_is_shown() -> None:
    configure_logging()
    assert logging.getLogger("__main__").isEnabledFor(logging.INFO)
