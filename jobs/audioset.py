"""The main job: preprocess AudioSet, train a model and track it.

python jobs/audioset.py demo
python jobs/audioset.py audioset_balanced --media youtube --root /data/audioset
ray job submit --working-dir . -- python jobs/audioset.py audioset_full --root s3://bucket/audioset …
"""

import dataclasses
import sys

from ast_model.recipes import Recipe
from jobs.command_line.cli import CommandLine
from jobs.command_line.presets import make_presets
from jobs.command_line.settings import RayConfig
from jobs.training.settings import AudioSetConfig
from pipeline.config import PreprocessConfig
from pipeline.store.layout import MINIATURE


def make_config(name: str, recipe: Recipe, ray: RayConfig) -> AudioSetConfig:
    """Return the preset of a recipe, including its data."""
    root, data = "data/audioset", PreprocessConfig()
    if name == "demo":
        root, data = "data/demo", PreprocessConfig(metadata=MINIATURE, clips_per_shard=40)
        data = dataclasses.replace(data, fetch=dataclasses.replace(data.fetch, deadline_s=5))
    elif name == "audioset_balanced":
        data = PreprocessConfig(splits=("balanced_train", "eval"))
    return AudioSetConfig(name, root, data, recipe.model, recipe.train, ray)


PRESETS = make_presets(make_config)
COMMAND_LINE = CommandLine("jobs.training.audioset:audioset", PRESETS, default="demo")


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
