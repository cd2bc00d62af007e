"""Compare trainings: a table on the terminal, and one page of HTML to send to a colleague.

python jobs/compare.py RUN RUN… [--root data/audioset] [--output comparison.html]

A RUN is an id of MLflow, a run's name there, or its folder in the store.
"""

import sys

import tyro

from jobs.checkpoints.settings import CompareConfig
from jobs.command_line.cli import CommandLine


def runs() -> CompareConfig:
    """Settings, data, figures with intervals, and classes that gain or lose."""
    return CompareConfig(runs=tyro.MISSING)


COMMAND_LINE = CommandLine("jobs.checkpoints.compare:compare", {"runs": runs})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
