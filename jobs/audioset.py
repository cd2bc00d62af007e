"""The main job: from AudioSet's CSV files to a trained, tracked model.

python jobs/audioset.py demo
python jobs/audioset.py audioset_balanced --media youtube --root /data/audioset
ray job submit --working-dir . -- python jobs/audioset.py audioset_full --root s3://bucket/audioset …
"""

import dataclasses
import logging
import secrets
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from ast_model import recipes
from ast_model.config import TrainConfig
from ast_model.model import ASTConfig
from ast_model.tracking import check_server, flatten, start_run, tracking_uri
from jobs.cli import resolve_root, run_job
from jobs.report import Outcome, print_report
from jobs.train import Metrics, RayConfig, WorkerSettings, train_on_ray
from jobs.visit import MINIATURE, media_at_hand, preprocess_tracked
from pipeline.cluster import ray_session
from pipeline.config import PreprocessConfig
from pipeline.snapshot import Snapshot
from pipeline.storage import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioSetConfig:
    """All settings of the main job."""

    preset: tyro.conf.Suppress[str] = "audioset_full"
    root: str = "data/audioset"
    """Folder or s3:// address of the store: metadata, shards, snapshots, runs. A relative one is taken from the
    current folder, in a Ray job from ~/audioset-ast."""
    data: Annotated[PreprocessConfig, tyro.conf.arg(name="")] = field(default_factory=PreprocessConfig)
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: RayConfig = field(default_factory=RayConfig)


def demo() -> AudioSetConfig:
    recipe = recipes.demo()
    data = PreprocessConfig(metadata=MINIATURE, clips_per_shard=40)
    data = dataclasses.replace(data, fetch=dataclasses.replace(data.fetch, deadline_s=5))
    return AudioSetConfig("demo", "data/demo", data, recipe.model, recipe.train)


def audioset_balanced() -> AudioSetConfig:
    recipe = recipes.audioset_balanced()
    data = PreprocessConfig(splits=("balanced_train", "eval"))
    ray = RayConfig(num_workers=1, use_gpu=True)
    return AudioSetConfig("audioset_balanced", data=data, model=recipe.model, train=recipe.train, ray=ray)


def audioset_full() -> AudioSetConfig:
    recipe = recipes.audioset_full()
    return AudioSetConfig(model=recipe.model, train=recipe.train, ray=RayConfig(num_workers=4, use_gpu=True))


PRESETS = {"demo": demo, "audioset_balanced": audioset_balanced, "audioset_full": audioset_full}
for name, preset in PRESETS.items():
    preset.__doc__ = getattr(recipes, name).__doc__


def audioset(config: AudioSetConfig) -> None:
    """Preprocess what is missing, train on all that is there, and report."""
    store = Store(resolve_root(config.root))
    check_server(tracking_uri(store))
    with media_at_hand(config.data, store) as data, ray_session():
        run = new_run_name(config.preset)
        snapshot, visit = preprocess_tracked(data, store, run)
        history = train(config, run, snapshot)
    print_report(Outcome(snapshot, visit, run, history, config.train.eval_split, tracking_uri(store)))


def new_run_name(preset: str) -> str:
    return f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def train(config: AudioSetConfig, run: str, snapshot: Snapshot) -> list[Metrics]:
    """Train as a tracked run, which ends with a status whatever happens."""
    model = dataclasses.replace(config.model, num_classes=len(snapshot.labels))
    tracker = start_run(snapshot.store, run, {"preset": config.preset, "snapshot": snapshot.snapshot_id})
    status = "FAILED"
    try:
        tracker.log_params(flatten(config))
        tracker.log_data(snapshot, "training")
        settings = WorkerSettings(snapshot.store, snapshot.snapshot_id, run, model, config.train, tracker)
        history = train_on_ray(settings, config.ray)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.end(status)
    return history


if __name__ == "__main__":
    sys.exit(run_job(audioset, PRESETS, default_preset="demo"))
