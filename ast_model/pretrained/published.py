"""Facts about the official AST checkpoints, because their `.pth` files contain only tensors.

Source: github.com/YuanGongND/ast, commit 31088be. Classes are from `egs/*/data/*class_labels_indices.csv`, other values
from `egs/*/run*.sh` and `src/run.py`. AudioSet's 527 classes come with AudioSet's metadata.
"""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ast_model.config import AUDIOSET_MEAN, AUDIOSET_STD, ASTConfig, Loss

STRIDES = (10, 12, 14, 16)
"""Strides of the published AudioSet models, equal along both axes."""


@dataclass(frozen=True)
class PublishedData:
    """A data set of the official recipes, with the settings of its models."""

    title: str
    num_classes: int
    num_frames: int
    mean: float
    std: float
    loss: Loss = "bce"
    labels: tuple[str, ...] = ()
    """Names of the classes in the order of the official head; empty for AudioSet, whose metadata names them."""


AUDIOSET = PublishedData("AudioSet", 527, 1024, AUDIOSET_MEAN, AUDIOSET_STD)

ESC50 = PublishedData(
    "ESC-50",
    num_classes=50,
    num_frames=512,
    mean=-6.6268077,
    std=5.358466,
    loss="ce",
    # In the order of `target` in the data set's esc50.csv.
    labels=tuple(
        """
        dog rooster pig cow frog cat hen insects sheep crow rain sea_waves crackling_fire crickets chirping_birds
        water_drops wind pouring_water toilet_flush thunderstorm crying_baby sneezing clapping breathing coughing
        footsteps laughing brushing_teeth snoring drinking_sipping door_wood_knock mouse_click keyboard_typing
        door_wood_creaks can_opening washing_machine vacuum_cleaner clock_alarm clock_tick glass_breaking helicopter
        chainsaw siren car_horn engine train church_bells airplane fireworks hand_saw
        """.split()
    ),
)

SPEECH_COMMANDS = PublishedData(
    "Speech Commands V2",
    num_classes=35,
    num_frames=128,
    mean=-6.845978,
    std=5.5654526,
    # The official order, which is neither alphabetical nor shared with other models on this data.
    labels=tuple(
        """
        backward follow five bed zero on learn two house tree dog stop seven eight down six forward cat right visual
        four wow no nine off three left marvin yes up sheila happy bird go one
        """.split()
    ),
)

PUBLISHED = (AUDIOSET, ESC50, SPEECH_COMMANDS)


def find_published(config: ASTConfig, names: Collection[str] = ()) -> PublishedData | None:
    """Return the data set whose number of classes and clip length match a model, and its class `names` if given."""
    for data in PUBLISHED:
        fits = (data.num_classes, data.num_frames) == (config.num_classes, config.num_frames)
        if fits and (not names or not data.labels or set(names) == set(data.labels)):
            return data
    return None


def published_shapes(shape: ASTConfig) -> Iterator[ASTConfig]:
    """Yield `shape` with each published length and stride. Their numbers of patches are all different."""
    for data in PUBLISHED:
        for stride in STRIDES:
            yield dataclasses.replace(shape, num_frames=data.num_frames, freq_stride=stride, time_stride=stride)
