import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs import preprocess
from jobs.command_line import console
from jobs.command_line.program import command_words

ROOT = Path(__file__).parents[3]
COMMANDS = sorted(file.stem for file in (ROOT / "jobs").glob("*.py") if file.stem != "__init__")
HELP = """
import sys
from jobs.command_line.console import main
sys.argv = ["audioset-ast", "--help"]
assert main() == 0
print(sorted({"torch", "ray", "mlflow", "pandas", "numpy", "pyarrow", "fsspec"} & set(sys.modules)), file=sys.stderr)
"""


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/audioset-ast", *argv])
    return console.main()


def test_console_script_is_declared_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["scripts"]["audioset-ast"]) is console.main


@pytest.mark.process
def test_help_lists_every_entry_point_without_heavy_imports() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True, cwd=ROOT)
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == COMMANDS
    assert done.stderr.splitlines()[-1] == "[]"


def test_subcommand_runs_the_entry_point_and_names_itself_in_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "preprocess", "status", "--help")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: audioset-ast preprocess status ")
    assert command_words("predict") == ["audioset-ast", "predict"]


def test_unknown_command_suggests_a_similar_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "preproces", "run") == 2
    assert "found 'preproces'; did you mean preprocess?" in capsys.readouterr().err
    assert run(monkeypatch) == 2
    assert "usage: audioset-ast COMMAND" in capsys.readouterr().out


def test_commands_to_paste_name_the_file_of_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/finetune.py"])
    assert command_words("predict") == ["python", "jobs/predict.py"]


def test_script_folder_leaves_the_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise `jobs/datasets` hides the library `datasets`."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "jobs"), *sys.path])
    assert preprocess.COMMAND_LINE.main(["no-such-command"]) == 2
    assert str(ROOT / "jobs") not in sys.path
