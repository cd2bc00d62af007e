"""ESC-50: 2,000 clips of 5 s in 50 classes, trained and measured on its five folds.

python jobs/esc50.py --data ESC-50-master --init audioset_10_10_0.4593.pth
python jobs/esc50.py --init MIT/ast-finetuned-audioset-10-10-0.4593     fetches the archive first
python jobs/esc50.py … --resume RUN                                     goes on with the folds that are left
"""

import sys

from ast_model import recipes
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_preset
from jobs.datasets.settings import ESC50Config

preset = make_preset(recipes.esc50, lambda recipe: ESC50Config(model=recipe.model, train=recipe.train))
COMMAND_LINE = CommandLine("jobs.datasets.esc50:esc50", {"esc50": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
