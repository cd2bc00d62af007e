"""Speech Commands V2: 105,829 recordings of 35 words, with the official validation and testing lists.

python jobs/speechcommands.py --data speech_commands_v0.02 --init facebook/deit-base-distilled-patch16-384
python jobs/speechcommands.py --init …                                  fetches the archive of 2.3 GB first
"""

import sys

from ast_model import recipes
from jobs.launch.cli import CommandLine
from jobs.launch.config.recordings import SpeechCommandsConfig


def preset() -> SpeechCommandsConfig:
    recipe = recipes.speechcommands()
    return SpeechCommandsConfig(model=recipe.model, train=recipe.train)


preset.__doc__ = recipes.speechcommands.__doc__

COMMAND_LINE = CommandLine("jobs.launch.speechcommands:speechcommands", {"speechcommands": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
