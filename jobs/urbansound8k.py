"""UrbanSound8K: 8,732 clips of up to 4 s in 10 classes, trained and measured on its ten folds.

python jobs/urbansound8k.py --data UrbanSound8K --init audioset_10_10_0.4593.pth
python jobs/urbansound8k.py --init MIT/ast-finetuned-audioset-10-10-0.4593    fetches the archive first
python jobs/urbansound8k.py … --resume RUN                                    goes on with the folds that are left
"""

import sys

from ast_model import recipes
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_preset
from jobs.datasets.settings import UrbanSound8KConfig

preset = make_preset(recipes.urbansound8k, lambda recipe: UrbanSound8KConfig(model=recipe.model, train=recipe.train))
COMMAND_LINE = CommandLine("jobs.datasets.urbansound8k:urbansound8k", {"urbansound8k": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
