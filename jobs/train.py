"""Train on an existing snapshot, on Ray Train or under torchrun.

python jobs/train.py audioset_full --root s3://bucket/audioset --workers 2:8
python jobs/train.py audioset_full --root s3://bucket/audioset --resume RUN
python -m jobs.training.torchrun --nproc-per-node 8 jobs/train.py audioset_full --root /data/audioset
"""

import sys

from ast_model.recipes import Recipe
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_presets
from jobs.command_line.settings import RayConfig
from jobs.training.settings import TrainJobConfig


def make_config(name: str, recipe: Recipe, ray: RayConfig) -> TrainJobConfig:
    root = "data/demo" if name == "demo" else "data/audioset"
    return TrainJobConfig(name, root, model=recipe.model, train=recipe.train, ray=ray)


PRESETS = make_presets(make_config)
COMMAND_LINE = CommandLine("jobs.training.train:train", PRESETS, default="demo")


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
