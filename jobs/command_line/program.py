"""The two ways to run a command: the console command `audioset-ast NAME`, or the file `jobs/NAME.py`."""

import sys
from pathlib import Path

CONSOLE = "audioset-ast"
ENTRY_POINTS = Path(__file__).resolve().parents[1]
"""The folder `jobs/`."""


def is_console() -> bool:
    """Return whether this process is the console command."""
    return Path(sys.argv[0]).name == CONSOLE


def program_name() -> str:
    """Return the words that started this process, for usage lines."""
    if is_console():
        return " ".join([CONSOLE, *sys.argv[1:2]])
    return f"python {'/'.join(Path(sys.argv[0]).parts[-2:])}"


def command_words(name: str) -> list[str]:
    """Return the words that run another command the way this process was started, for commands to paste."""
    return [CONSOLE, name] if is_console() else ["python", f"jobs/{name}.py"]
