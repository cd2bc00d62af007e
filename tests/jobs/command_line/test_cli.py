import importlib
import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs import audioset, esc50, finetune, models, preprocess
from jobs.checkpoints.settings import FetchModel
from jobs.command_line.cli import CommandLine, configure_logging, flags_of, resolve_root
from jobs.preprocessing.settings import DiffSnapshots
from jobs.training.settings import AudioSetConfig
from pipeline.errors import ConfigError, InputError, LeaseError


@dataclass(frozen=True)
class Inner:
    num_epochs: int = 3
    """Total number of epochs."""

    def __post_init__(self) -> None:
        if self.num_epochs < 1:
            raise ConfigError(f"num_epochs must be at least 1, found {self.num_epochs}")


@dataclass(frozen=True)
class Config:
    root: str = "data"
    train: Inner = field(default_factory=Inner)


PRESETS = {"demo": Config, "audioset_full": lambda: Config("full", Inner(5))}


class FailingCommandLine(CommandLine):
    """A command line whose job raises `error`, if set."""

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


def parse(argv: list[str]) -> Config:
    return CommandLine("", PRESETS).parse(argv)


def test_flags_override_the_preset() -> None:
    assert parse([]) == Config()
    assert parse(["--root", "there"]) == Config("there")
    assert parse(["audioset_full", "--train.num-epochs", "7"]) == Config("full", Inner(7))


@pytest.mark.parametrize("preset", audioset.PRESETS)
def test_presets_of_the_main_job_document_their_flags(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = audioset.PRESETS[preset]()
    assert audioset.COMMAND_LINE.parse([preset]) == expected
    with pytest.raises(SystemExit) as end:
        audioset.COMMAND_LINE.parse([preset, "--help"])
    assert end.value.code == 0
    assert "Samples per step over all ranks." in " ".join(capsys.readouterr().out.replace("│", "").split())


def test_unknown_preset_is_reported_with_a_similar_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audioset_ful"]) == 2
    message = capsys.readouterr().err
    assert "expected a preset, one of demo, audioset_full, found 'audioset_ful'; did you mean audioset_full?" in message
    assert "Traceback" not in message
    assert run(["xyz"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--train.num-epoch", "did you mean --train.num-epochs"),
        ("--lr", "did you mean --train.learning-rate?"),
        ("--gpu", "did you mean --use-gpu or"),
        ("--global_batch_size", "did you mean --train.global-batch-size"),
        ("--xyz", "--help-all shows all flags"),
        ("--data.clips-per-shard", "did you mean --clips-per-shard?"),
    ],
)
def test_unknown_flag_is_reported_with_similar_ones(flag: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert audioset.COMMAND_LINE.main(["demo", flag, "7"]) == 2
    assert f"unknown flag {flag}; {meant}" in capsys.readouterr().err


def test_options_may_precede_the_word_and_values_are_not_taken_for_it() -> None:
    assert parse(["--root", "there", "audioset_full"]) == Config("there", Inner(5))
    assert parse(["--root=there", "audioset_full"]) == Config("there", Inner(5))
    assert parse(["--root", "audioset_full"]) == Config("audioset_full")
    assert models.COMMAND_LINE.parse(["--root", "x", "fetch", "--to", "y"]) == FetchModel("x", to="y")
    command = preprocess.COMMAND_LINE.parse(["snapshots", "diff", "--root", "x", "--old", "y"])
    assert command == DiffSnapshots("x", old="y")


@pytest.mark.process
def test_help_into_a_closed_pipe_exits_without_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jobs.audioset", "--help"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_short_help_fits_on_two_screens_and_long_help_shows_every_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            audioset.COMMAND_LINE.main([flag])
        assert end.value.code == 0
        shown[flag] = capsys.readouterr().out
    assert len(shown["--help"].splitlines()) <= 100
    assert "--train.learning-rate FLOAT" in shown["--help"]
    assert "--train.schedule.{shape, " in shown["--help"] and "--train.schedule.shape {" not in shown["--help"]
    flags = list(flags_of(AudioSetConfig))
    assert len(flags) > 90
    assert [flag for flag in flags if flag not in shown["--help-all"]] == []


def test_missing_folder_is_reported_before_the_job_is_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess.COMMAND_LINE.main(["status", "--root", str(tmp_path)]) == 1
    assert f"--root: {tmp_path}/metadata does not exist; run" in capsys.readouterr().err
    assert finetune.COMMAND_LINE.main(["--data", str(tmp_path / "sounds.csv")]) == 1
    assert f"--data: {tmp_path}/sounds.csv does not exist" in capsys.readouterr().err


JOBS = sorted(file.stem for file in (Path(__file__).parents[3] / "jobs").glob("*.py") if file.stem != "__init__")
HELP_OF_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    command_line = importlib.import_module(f"jobs.{name}").COMMAND_LINE
    for argv in (["--help"], ["--help-all"], ["--lr", "1"]):
        try:
            command_line.main(argv)
        except SystemExit:
            pass
    command_line.main(["--root", "/nowhere/at/all", "--data", "/nowhere/at/all"])
print(sorted({"torch", "ray", "mlflow", "pandas", "numpy", "pyarrow", "fsspec"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.process
def test_command_lines_answer_without_heavy_imports() -> None:
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL, *JOBS], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", JOBS)
def test_command_line_resolves_to_a_function_that_takes_its_config(name: str) -> None:
    command_line = importlib.import_module(f"jobs.{name}").COMMAND_LINE
    for preset in command_line.presets.values():
        config = preset()
        job = command_line.load(config)
        (parameter,) = inspect.signature(job).parameters.values()
        assert issubclass(type(config), parameter.annotation)


def test_value_of_the_wrong_type_is_reported_with_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["demo", "--train.num-epochs", "many"])
    assert end.value.code == 2
    assert "--train.num-epochs" in capsys.readouterr().err


def test_invalid_setting_is_reported_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--train.num-epochs", "0"]) == 2
    message = capsys.readouterr().err
    assert "num_epochs must be at least 1, found 0" in message
    assert "Traceback" not in message


def test_messages_name_the_flags_of_this_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command_line, flag in (
        (audioset.COMMAND_LINE, "--train.learning-rate"),
        (esc50.COMMAND_LINE, "--learning-rate"),
    ):
        assert command_line.main([flag, "-1"]) == 2
        assert f": {flag} must be above 0, found -1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (InputError("row 3 is odd"), 1, "InputError: row 3 is odd"),
        (ConfigError("no such thing"), 2, "ConfigError: no such thing"),
        (LeaseError("held"), 75, "LeaseError: held"),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
    ],
)
def test_each_error_has_its_exit_code_and_message(
    error: BaseException | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([], error) == code
    assert message in capsys.readouterr().err


def test_bugs_are_not_caught() -> None:
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


def test_messages_of_the_entry_point_itself_are_logged() -> None:
    configure_logging()
    assert logging.getLogger("__main__").isEnabledFor(logging.INFO)
