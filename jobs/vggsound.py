"""VGGSound: 10 s from each of 200,000 videos in 309 classes, fetched from YouTube or a mirror like AudioSet.

python jobs/vggsound.py --media youtube --train.init facebook/deit-base-distilled-patch16-384
python jobs/vggsound.py --table vggsound.csv --media 'http://mirror/{ytid}_{start_ms}.wav' --already-cut --train.init …
"""

import sys

from ast_model import recipes
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_preset
from jobs.datasets.settings import VGGSoundConfig

preset = make_preset(recipes.vggsound, lambda recipe: VGGSoundConfig(model=recipe.model, train=recipe.train))
COMMAND_LINE = CommandLine("jobs.datasets.vggsound:vggsound", {"vggsound": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
