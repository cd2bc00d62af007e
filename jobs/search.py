"""Find the clips that sound most like others, in a store or among files.

python jobs/search.py --checkpoint data/own/SET/runs/RUN/checkpoints/EPOCH --like frog.wav --audio recordings/
python jobs/search.py --checkpoint data/own/SET/runs/RUN/checkpoints/EPOCH --label frog --root data/own/SET
"""

import sys

import tyro

from jobs.command_line.cli import CommandLine
from jobs.own_sounds.settings import SearchConfig


def search() -> SearchConfig:
    """A sound, or a class's examples → a table of the nearest clips, and a page with players."""
    return SearchConfig(checkpoint=tyro.MISSING)


COMMAND_LINE = CommandLine("jobs.own_sounds.search:search", {"search": search})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
