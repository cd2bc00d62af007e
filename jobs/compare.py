"""Compare trainings: a table on the terminal, and one page of HTML to send to a colleague.

python jobs/compare.py RUN RUN… [--root data/audioset] [--output comparison.html]

A RUN is an id of MLflow, a run's name there, or its folder in the store.
"""

import sys
from itertools import takewhile

from jobs.config import CompareConfig
from jobs.launch.cli import CommandLine


def main(argv: list[str]) -> int:
    runs = tuple(takewhile(lambda arg: not arg.startswith("-"), argv))

    def these() -> CompareConfig:
        """Settings, data, figures with intervals, and classes that gain or lose."""
        return CompareConfig(runs) if "--help" not in argv else CompareConfig(("RUN", "RUN…"))

    return CommandLine("jobs.launch.compare:compare", {"these": these}).main(argv[len(runs) :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
