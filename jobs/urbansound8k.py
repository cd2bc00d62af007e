"""UrbanSound8K: 8,732 clips of up to 4 s in 10 classes; cross-validation over ten folds. Licence: CC BY-NC.

python jobs/urbansound8k.py --data UrbanSound8K --init audioset_10_10_0.4593.pth
python jobs/urbansound8k.py --init MIT/ast-finetuned-audioset-10-10-0.4593    downloads the archive first
python jobs/urbansound8k.py … --resume RUN                                    resumes with the remaining folds
"""

import sys

from ast_model import recipes
from ast_model.recipes import Recipe
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_preset
from jobs.datasets.settings import Dataset, FoldsConfig

URBANSOUND8K = Dataset(
    name="urbansound8k",
    reader="pipeline.recordings.urbansound8k:read_urbansound8k",
    marker="metadata/UrbanSound8K.csv",
    num_folds=10,
)


def make_config(recipe: Recipe) -> FoldsConfig:
    return FoldsConfig(
        dataset=URBANSOUND8K,
        archive="https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz",
        digest="9aa69802bbf37fb986f71ec1483a196e",  # as soundata verifies it
        root="data/urbansound8k",
        folds=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        model=recipe.model,
        train=recipe.train,
    )


preset = make_preset(recipes.urbansound8k, make_config)
COMMAND_LINE = CommandLine("jobs.datasets.folds:train_folds", {"urbansound8k": preset})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
