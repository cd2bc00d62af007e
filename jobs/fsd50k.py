"""FSD50K: 51,197 clips of 0.3 to 30 s with one or several of 200 classes, and the official train, val and eval sets.

python jobs/fsd50k.py --data FSD50K --init audioset_10_10_0.4593.pth
python jobs/fsd50k.py --init MIT/ast-finetuned-audioset-10-10-0.4593    fetches the set first
"""

import sys

from ast_model import recipes
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_preset
from jobs.datasets.settings import FSD50KConfig

preset = make_preset(recipes.fsd50k, lambda recipe: FSD50KConfig(model=recipe.model, train=recipe.train))
COMMAND_LINE = CommandLine("jobs.datasets.fsd50k:fsd50k", {"fsd50k": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
