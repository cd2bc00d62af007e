"""Speech Commands V2: 105,829 recordings of 35 words, with the official validation and testing lists.

python jobs/speechcommands.py --data speech_commands_v0.02 --init facebook/deit-base-distilled-patch16-384
python jobs/speechcommands.py --init …                                  downloads the archive of 2.3 GB first
"""

import sys

from ast_model import recipes
from ast_model.recipes import Recipe
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_preset
from jobs.datasets.settings import Dataset, OfficialSplitsConfig

SPEECH_COMMANDS = Dataset(
    name="speechcommands",
    reader="pipeline.recordings.speechcommands:read_speech_commands",
    marker="testing_list.txt",
)


def make_config(recipe: Recipe) -> OfficialSplitsConfig:
    return OfficialSplitsConfig(
        dataset=SPEECH_COMMANDS,
        archive="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        digest="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",  # as torchaudio verifies it
        root="data/speechcommands",
        model=recipe.model,
        train=recipe.train,
    )


preset = make_preset(recipes.speechcommands, make_config)
COMMAND_LINE = CommandLine("jobs.datasets.splits:train_and_test", {"speechcommands": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
