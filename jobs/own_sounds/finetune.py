"""Your own sounds: settings that follow from the data, and a training on them."""

import dataclasses
import logging
import math
import shlex
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.config import ASTConfig, AugmentConfig, ScheduleConfig, TrainConfig, flag_of
from ast_model.flops import forward_flops
from ast_model.pretrained.load import load_pretrained
from ast_model.pretrained.weight_files import locate_weights, read_weights
from ast_model.training.step_metrics import Metrics
from jobs.command_line.cli import resolve_root
from jobs.command_line.program import command_words
from jobs.command_line.run_names import new_run_name
from jobs.command_line.settings import RayConfig
from jobs.datasets.local_clips import preprocess_local_clips
from jobs.own_sounds.head_only import head_settings, train_head
from jobs.own_sounds.settings import FinetuneConfig
from jobs.training.initial_weights import open_initial_weights
from jobs.training.ray_train import choose_gpu
from jobs.training.runs import TrackedJob, begin_run, ending_tracked
from jobs.training.start_or_resume import start_or_resume
from jobs.training.training_clips import select_training_clips
from pipeline.cluster.session import ray_session
from pipeline.errors import ConfigError
from pipeline.fbank_settings import SAMPLE_RATE_HZ, num_frames_of
from pipeline.recordings.own_sounds import SPLITS, CutConfig, read_sounds
from pipeline.recordings.tables import LabelledClip, digest_of_tables, write_tables
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

SIZES = {
    "nano": ASTConfig.nano,
    "tiny": ASTConfig.tiny,
    "small": ASTConfig.small,
    "base": ASTConfig.base,
    "eat": ASTConfig.eat,
}
FRAME_GRID = 16
"""The model's length is a multiple of a patch."""
MIN_FRAMES = 32
NUM_SAMPLES_AIMED_AT = 4_000
"""Samples that a training of few clips takes, as far as that many epochs make sense."""

FEW_CLIPS = 2_000
"""Training clips below which a head on embeddings is as good a first try as a training of all weights."""

HEAD_PRESET = "finetune_head"
"""Begins the names of runs that fitted only a head."""

PUBLISHED = "MIT/ast-finetuned-audioset-10-10-0.4593"


@dataclass(frozen=True)
class FinetuneRun:
    """A run's settings, as they follow from the data."""

    preset: str
    data: str
    model: ASTConfig
    train: TrainConfig
    resume: str
    ray: RayConfig


def finetune(config: FinetuneConfig) -> None:
    """Train on one's own sounds, and print the metrics, where the model is and how to tag with it."""
    if not config.data:
        raise ConfigError("--data is not set: name a table with the columns path,labels, or a folder of folders")
    if config.init:
        config = dataclasses.replace(config, init=locate_weights(config.init))
        warn_of_random_weights(config.init)
    clips, classes = read_sounds(Path(config.data), CutConfig(config.clip_s, config.eval_share, config.seed))
    log_counts(clips, classes)
    if not config.init and (num_clips := sum(clip.split == "train" for clip in clips)) < NUM_SAMPLES_AIMED_AT:
        advice = "%d clips are too few to train from random weights; start from an AST's: --init %s"
        log.warning(advice, num_clips, PUBLISHED)
    model = plan_model(config, clips, len(classes))
    train = open_initial_weights(plan_training(config, clips), model, config.resume)
    run = FinetuneRun(config.preset, config.data, model, train, config.resume, config.ray)
    store = Store(f"{resolve_root(config.root)}/{_digest(clips, classes)}")
    with ray_session():
        run = dataclasses.replace(run, ray=choose_gpu(config.ray))
        is_head_only = choose_head_only(config, bool(run.ray.use_gpu), clips)
        snapshot = preprocess_local_clips(clips, classes, store)
        if not config.resume:  # a resumed run keeps its own
            snapshot = select_training_clips(snapshot, config.selection, train)
        if is_head_only:
            run = dataclasses.replace(run, preset=HEAD_PRESET, train=head_settings(train))
            job = begin_run(run, snapshot, new_run_name(run.preset))
            with ending_tracked(job):
                report = train_head(job, config.views, config.shots, bool(run.ray.use_gpu))
            lines = report.lines()
        else:
            log.info("faster: %s", "; ".join(faster_ways(config, model)))
            job, history = start_or_resume(run, snapshot)
            lines = [_line(metrics) for metrics in history]
    print("\n".join([*lines, *_next_steps(job, config, is_head_only)]))


def warn_of_random_weights(init: str) -> None:
    """Warn of a head that was fitted over random weights: a training changes those long before they are of use."""
    description = read_weights(init).description
    if str(description.get("run", "")).startswith(HEAD_PRESET) and not description.get("train", {}).get("init"):
        log.warning(
            "%s is a head on random weights; a training of all soon changes what it was fitted to, and begins with less"
            " than the head has (docs/your-own-sounds.md): leave --init out, or start from an AST's: --init %s",
            *(init, PUBLISHED),
        )


def _next_steps(job: TrackedJob, config: FinetuneConfig, is_head_only: bool) -> list[str]:
    """Return where the models are, and commands to paste."""
    store = job.store
    best, averages = best_checkpoint(store, job.folder), list_checkpoints(store, job.average_folder)
    # The average comes last, and is usually the better one.
    found = {"best epoch": best[0] if best else "", "average": averages[-1] if averages else ""}
    found = {name: store.url(checkpoint) for name, checkpoint in found.items() if checkpoint}
    lines = [f"{'checkpoint' if is_head_only else name:12} {address}" for name, address in found.items()]
    for address in list(found.values())[-1:]:
        lines.append(
            f"tag with     {shlex.join((*command_words('predict'), '--checkpoint', address, '--audio'))} FILES"
        )
        if is_head_only and config.init:
            words = (*command_words("finetune"), *_flags_of_data(config), "--init", address, "--no-head-only")
            lines.append(f"train all    {shlex.join(words)}")
    return lines


def _flags_of_data(config: FinetuneConfig) -> list[str]:
    """Return the flags by which another command takes the same clips from the same store."""
    default = FinetuneConfig(data=config.data)
    names = ("data", "root", "clip_s", "eval_share", "seed")
    changed = [name for name in names if name == "data" or getattr(config, name) != getattr(default, name)]
    return [word for name in changed for word in (flag_of(name), str(getattr(config, name)))]


def faster_ways(config: FinetuneConfig, model: ASTConfig) -> list[str]:
    """Return settings by which a training of all weights would take less time."""
    smaller = list(SIZES)[: list(SIZES).index(config.size)] if not config.init else []
    shapes = {size: SIZES[size](num_classes=model.num_classes, num_frames=model.num_frames) for size in smaller}
    return [
        "--head-only, which computes each clip once",
        *(
            f"--size {size} ({forward_flops(shape) / forward_flops(model):.1%} of the operations)"
            for size, shape in shapes.items()
        ),
    ]


def choose_head_only(config: FinetuneConfig, has_gpu: bool, clips: Sequence[LabelledClip]) -> bool:
    """Return whether only a head is fitted; say so where it was not asked for, with the way to override it."""
    if config.head_only is not None:
        return config.head_only
    settings_of_training = (config.num_epochs, config.batch_size, config.learning_rate)
    if config.resume or any(setting is not None for setting in settings_of_training):
        return False
    num_clips = sum(clip.split == "train" for clip in clips)
    if has_gpu and num_clips >= FEW_CLIPS:
        return False
    why = f"there are only {num_clips} training clips" if has_gpu else "there is no GPU"
    log.info("only the head is fitted, on embeddings that are kept, since %s; to train all of it: --no-head-only", why)
    return True


def _line(metrics: Metrics) -> str:
    values = (f"{name} {value:.4f}" for name, value in sorted(metrics.items()) if name != "epoch")
    return f"epoch {metrics['epoch']:3.0f}   " + "   ".join(values)


def log_counts(clips: Sequence[LabelledClip], classes: Sequence[str]) -> None:
    counts = Counter((clip.split, label) for clip in clips for label in clip.labels)
    splits = [split for split in SPLITS if any(clip.split == split for clip in clips)]
    for name in classes:
        log.info("%-30s %s", name, ", ".join(f"{counts[split, name]} {split}" for split in splits))


def plan_model(config: FinetuneConfig, clips: Sequence[LabelledClip], num_classes: int) -> ASTConfig:
    """Return a shape as long as the longest clip, otherwise that of an AST that is started from."""
    longest_ms = max(clip.end_ms - clip.start_ms for clip in clips)
    num_frames = num_frames_of(longest_ms * SAMPLE_RATE_HZ // 1000)
    num_frames = max(MIN_FRAMES, math.ceil(num_frames / FRAME_GRID) * FRAME_GRID)
    shape = SIZES[config.size]()
    if config.init:
        try:
            shape = load_pretrained(config.init).config
        except ConfigError:  # DeiT's weights fit any AST of their size
            log.info("%s has no AST's head, so the model has the shape of --size %s", config.init, config.size)
    return dataclasses.replace(shape, num_classes=num_classes, num_frames=max(num_frames, shape.patch_time))


def plan_training(config: FinetuneConfig, clips: Sequence[LabelledClip]) -> TrainConfig:
    """Return a training that suits the number of clips, and whether each has one label or several."""
    num_clips = sum(clip.split == "train" for clip in clips)
    has_one_label = all(len(clip.labels) == 1 for clip in clips)
    batch_size = config.batch_size or (8 if num_clips < 400 else 16 if num_clips < 4_000 else 48)
    batch_size = min(batch_size, num_clips)
    num_epochs = config.num_epochs or min(40, max(5, math.ceil(NUM_SAMPLES_AIMED_AT / num_clips)))
    num_steps = num_epochs * (num_clips // batch_size)
    longest_s = max(clip.end_ms - clip.start_ms for clip in clips) / 1000
    return TrainConfig(
        train_splits=("train",),
        eval_split=next(split for split in SPLITS[1:] if any(clip.split == split for clip in clips)),
        init=config.init,
        num_epochs=num_epochs,
        sampler="balanced",
        global_batch_size=batch_size,
        micro_batch_size=batch_size,
        learning_rate=config.learning_rate or (5e-5 if config.init else 5e-4),
        schedule=ScheduleConfig(
            num_warmup_steps=num_steps // 10,
            num_steps_per_stair=max(1, num_steps // 100),
            num_epochs_before_decay=max(1, num_epochs // 2),
            num_epochs_per_decay=max(1, num_epochs // 10),
        ),
        augment=AugmentConfig(
            mixup_probability=config.mixup_probability,
            max_freq_mask_bins=24,
            max_time_mask_frames=round(20 * longest_s),
        ),
        loss="ce" if has_one_label else "bce",
        average_last_epochs=1 + num_epochs // 4,
        seed=config.seed,
        log_every_steps=max(1, min(20, num_steps // 20)),
    )


def _digest(clips: Sequence[LabelledClip], classes: Sequence[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_tables(clips, classes, Path(folder))
        return digest_of_tables(Path(folder))
