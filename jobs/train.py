"""Train on a snapshot that is there, on Ray Train or under torchrun.

python jobs/train.py audioset_full --root s3://bucket/audioset --workers 2:8
python jobs/train.py audioset_full --root s3://bucket/audioset --resume RUN
python -m jobs.launch.torchrun --nproc-per-node 8 jobs/train.py audioset_full --root /data/audioset
"""

import sys

from ast_model.recipes import Recipe
from jobs.launch.cli import CommandLine
from jobs.launch.config.common import RayConfig
from jobs.launch.config.training import TrainJobConfig
from jobs.launch.presets import make_presets


def make_config(name: str, recipe: Recipe, ray: RayConfig) -> TrainJobConfig:
    root = "data/demo" if name == "demo" else "data/audioset"
    return TrainJobConfig(name, root, model=recipe.model, train=recipe.train, ray=ray)


PRESETS = make_presets(make_config)
COMMAND_LINE = CommandLine("jobs.launch.train:train", PRESETS, default="demo")


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
