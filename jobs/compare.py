"""Compare training runs in a table on the terminal and on a self-contained HTML page.

python jobs/compare.py RUN RUN… [--root data/audioset] [--output comparison.html]

RUN is an MLflow id, a run's name, its folder in the store, or a folder that jobs/evaluate.py wrote.
"""

import sys

import tyro

from jobs.checkpoints.settings import CompareConfig
from jobs.command_line.cli import CommandLine


def runs() -> CompareConfig:
    """Show differences in settings and data, metrics with intervals, and classes that gain or lose."""
    return CompareConfig(runs=tyro.MISSING)


COMMAND_LINE = CommandLine("jobs.checkpoints.compare:compare", {"runs": runs})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
