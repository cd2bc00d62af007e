"""The main job: from AudioSet's CSV files to a trained, tracked model.

python jobs/audioset.py demo
python jobs/audioset.py audioset_balanced --media youtube --root /data/audioset
ray job submit --working-dir . -- python jobs/audioset.py audioset_full --root s3://bucket/audioset …
"""

import dataclasses
import logging
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from ast_model.config import ASTConfig, TrainConfig
from ast_model.recipes import Recipe
from ast_model.tracking.server import check_server, tracking_uri
from ast_model.training.checks import check_ranks
from jobs.launch.cli import resolve_root, run_job
from jobs.launch.preprocessing import MINIATURE, preprocess_tracked, with_miniature_media
from jobs.launch.presets import make_presets
from jobs.launch.ray_train import RayConfig, train_on_ray
from jobs.launch.report import RunSummary, print_report
from jobs.launch.runs import begin_run, ending_tracked, new_run_name, resume_run
from pipeline.cluster import ray_session
from pipeline.config import PreprocessConfig
from pipeline.preprocess import PreprocessReport
from pipeline.store.storage import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioSetConfig:
    """All settings of the main job."""

    preset: tyro.conf.Suppress[str] = "audioset_full"
    root: str = "data/audioset"
    """Folder or s3:// address of the store: metadata, shards, snapshots, runs. A relative one is taken from the
    current folder, in a Ray job from ~/audioset-ast."""
    data: Annotated[PreprocessConfig, tyro.conf.arg(name=""), tyro.conf.EnumChoicesFromValues] = field(
        default_factory=PreprocessConfig
    )
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, tyro.conf.arg(name="")] = field(default_factory=RayConfig)
    resume: str = ""
    """Run to go on with, on its own snapshot and by the same command otherwise; empty for a new one."""


def make_config(name: str, recipe: Recipe, ray: RayConfig) -> AudioSetConfig:
    """Return a preset: a recipe with the data that it learns from."""
    root, data = "data/audioset", PreprocessConfig()
    if name == "demo":
        root, data = "data/demo", PreprocessConfig(metadata=MINIATURE, clips_per_shard=40)
        data = dataclasses.replace(data, fetch=dataclasses.replace(data.fetch, deadline_s=5))
    elif name == "audioset_balanced":
        data = PreprocessConfig(splits=("balanced_train", "eval"))
    return AudioSetConfig(name, root, data, recipe.model, recipe.train, ray)


PRESETS = make_presets(make_config)


def audioset(config: AudioSetConfig) -> None:
    """Preprocess what is missing, train on all that is there, and report."""
    check_ranks(config.train, config.ray.num_workers[1])
    store = Store(resolve_root(config.root))
    check_server(tracking_uri(store))
    with ray_session():
        if config.resume:
            settings, snapshot = resume_run(config.resume, store, config)
            visit = PreprocessReport()
        else:
            run = new_run_name(config.preset)
            with with_miniature_media(config.data, store) as data:
                snapshot, visit = preprocess_tracked(data, store, run)
            settings = begin_run(config, snapshot, run)
        with ending_tracked(settings):
            history = train_on_ray(settings, config.ray)
    print_report(RunSummary(snapshot, visit, settings.run, history, config.train.eval_split, tracking_uri(store)))


if __name__ == "__main__":
    sys.exit(run_job(audioset, PRESETS, default_preset="demo"))
