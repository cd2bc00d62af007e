"""FSD50K: 51,197 clips of 0.3 to 30 s in 200 classes, several per clip, with official train, val and eval sets.

python jobs/fsd50k.py --data FSD50K --init audioset_10_10_0.4593.pth
python jobs/fsd50k.py --init MIT/ast-finetuned-audioset-10-10-0.4593    downloads the archives first
"""

import sys

from ast_model import recipes
from ast_model.recipes import Recipe
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_preset
from jobs.datasets.settings import Dataset, FSD50KConfig

FSD50K = Dataset(
    name="fsd50k",
    reader="pipeline.recordings.fsd50k:read_fsd50k",
    marker="FSD50K.ground_truth/vocabulary.csv",
    fetcher="pipeline.recordings.fsd50k:fetch_fsd50k",
    metric="mAP",
)


def make_config(recipe: Recipe) -> FSD50KConfig:
    return FSD50KConfig(
        dataset=FSD50K,
        root="data/fsd50k",
        model=recipe.model,
        train=recipe.train,
    )


preset = make_preset(recipes.fsd50k, make_config)
COMMAND_LINE = CommandLine("jobs.datasets.splits:train_and_test", {"fsd50k": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
