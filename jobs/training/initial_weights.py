"""Weights to start from, opened before anything costly."""

import dataclasses
import logging

from ast_model.config import ASTConfig, TrainConfig
from ast_model.pretrained.load import check_weights
from ast_model.pretrained.weight_files import locate_weights
from pipeline.errors import WeightsError

log = logging.getLogger(__name__)


def open_initial_weights(train: TrainConfig, model: ASTConfig, resume: str) -> TrainConfig:
    """Return settings whose `init` any process finds, after loading it into a model of this shape once.

    A path is taken from the folder that the command is typed in: Ray's workers run in another. A run that is resumed
    goes on from its checkpoint, so its weights are not opened. Raises WeightsError.
    """
    if not train.init:
        return train
    try:
        init = locate_weights(train.init)
    except WeightsError:
        if not resume:
            raise
        return train  # Removed since the run began, which needs them no more.
    if not resume:
        check_weights(init, model)
        log.info("training starts from %s", init)
    return dataclasses.replace(train, init=init)
