"""Choose the shape of the model for a published data set."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import TypeVar

from ast_model import recipes
from ast_model.config import ASTConfig
from ast_model.pretrained.load import load_pretrained
from jobs.datasets.settings import DatasetConfig
from pipeline.errors import ConfigError, WeightsError

log = logging.getLogger(__name__)

AnyDatasetConfig = TypeVar("AnyDatasetConfig", bound=DatasetConfig)


def adopt_initial_shape(config: AnyDatasetConfig) -> AnyDatasetConfig:
    """Return the settings with the initial weights' shape, except the number of frames and changed settings.

    Does nothing for DeiT's weights, which have no AST's shape, and for resumed runs, which need no initial weights.
    """
    if not config.train.init:
        return config
    try:
        shape = load_pretrained(config.train.init).config
    except (ConfigError, WeightsError):
        return config  # `open_initial_weights` will report unusable weights
    usual = getattr(recipes, config.preset)().model
    changed = {name: value for name, value in vars(config.model).items() if value != getattr(usual, name)}
    kept = {"num_classes": config.model.num_classes, "num_frames": config.model.num_frames}
    model = dataclasses.replace(shape, **kept | changed)
    if size_of(model) != size_of(config.model):
        log.info("the model has the shape of --init: %d blocks of width %d", model.depth, model.width)
    return dataclasses.replace(config, model=model)


def size_of(model: ASTConfig) -> tuple[int, int]:
    return model.depth, model.width


def log_classes(config: DatasetConfig, classes: Sequence[str]) -> None:
    """Log how many of the data set's classes were found."""
    expected = getattr(recipes, config.preset)().model.num_classes
    level = logging.INFO if len(classes) == expected else logging.WARNING
    log.log(level, "%s: found %d of %d classes", config.dataset.name, len(classes), expected)
