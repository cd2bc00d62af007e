"""Name the running program as it was started: as `audioset-ast NAME` or as `jobs/NAME.py`."""

import shlex
import sys
from pathlib import Path

CONSOLE = "audioset-ast"
ENTRY_POINTS = Path(__file__).resolve().parents[1]
"""The folder `jobs/`."""
ROOT = ENTRY_POINTS.parent


def is_console() -> bool:
    """Return True if this process is the console command."""
    return Path(sys.argv[0]).name == CONSOLE


def program_name() -> str:
    """Return the words that started this process, for usage lines."""
    if is_console():
        return " ".join([CONSOLE, *sys.argv[1:2]])
    return f"python {'/'.join(Path(sys.argv[0]).parts[-2:])}"


def command_words(name: str) -> list[str]:
    """Return the words that run another command in the way this process was started, for users to paste."""
    return [CONSOLE, name] if is_console() else ["python", f"jobs/{name}.py"]


def command() -> str:
    """Return this process's command line, relative to the repository's root."""
    return shlex.join([CONSOLE, *sys.argv[1:]] if is_console() else ["python", script(), *sys.argv[1:]])


def script() -> str:
    """Return this process's script, relative to the repository's root."""
    path = Path(sys.argv[0])
    return str(path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path.name)
