"""Speech Commands V2: 105,829 recordings of 35 words, with the official validation and testing lists.

python jobs/speechcommands.py --data speech_commands_v0.02 --init facebook/deit-base-distilled-patch16-384
python jobs/speechcommands.py --init …                                  fetches the archive of 2.3 GB first
"""

import sys

from ast_model import recipes
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_preset
from jobs.datasets.settings import SpeechCommandsConfig

preset = make_preset(
    recipes.speechcommands, lambda recipe: SpeechCommandsConfig(model=recipe.model, train=recipe.train)
)
COMMAND_LINE = CommandLine("jobs.datasets.speechcommands:speechcommands", {"speechcommands": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
