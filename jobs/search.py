"""Find clips of a store, or windows of audio files, that sound most like given examples.

python jobs/search.py --checkpoint data/own/SET/runs/RUN/checkpoints/EPOCH --like frog.wav --audio recordings/
python jobs/search.py --checkpoint data/own/SET/runs/RUN/checkpoints/EPOCH --label frog --root data/own/SET
python jobs/search.py --like frog.wav --root data/own/SET      compares spectral statistics, without a model
"""

import sys

from jobs.command_line.cli import CommandLine
from jobs.own_sounds.settings import SearchConfig


def search() -> SearchConfig:
    """Write a table and an HTML page, with players, of the clips nearest to some sounds or to a class."""
    return SearchConfig()


COMMAND_LINE = CommandLine("jobs.own_sounds.search:search", {"search": search})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
