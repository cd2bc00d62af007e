"""ESC-50: 2,000 clips of 5 s in 50 classes; cross-validation over five folds.

python jobs/esc50.py --data ESC-50-master --init audioset_10_10_0.4593.pth
python jobs/esc50.py --init MIT/ast-finetuned-audioset-10-10-0.4593     downloads the archive first
python jobs/esc50.py … --resume RUN                                     resumes with the remaining folds
"""

import sys

from ast_model import recipes
from ast_model.recipes import Recipe
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_preset
from jobs.datasets.settings import Dataset, FoldsConfig

ESC50 = Dataset(
    name="esc50",
    reader="pipeline.recordings.esc50:read_esc50",
    marker="meta/esc50.csv",
    num_folds=5,
)


def make_config(recipe: Recipe) -> FoldsConfig:
    return FoldsConfig(
        dataset=ESC50,
        archive="https://github.com/karoldvl/ESC-50/archive/master.zip",  # without a fixed digest
        root="data/esc50",
        folds=(1, 2, 3, 4, 5),
        model=recipe.model,
        train=recipe.train,
    )


preset = make_preset(recipes.esc50, make_config)
COMMAND_LINE = CommandLine("jobs.datasets.folds:train_folds", {"esc50": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
