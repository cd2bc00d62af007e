"""Check the initial weights before any costly step."""

import dataclasses
import logging

from ast_model.config import ASTConfig, TrainConfig
from ast_model.pretrained.load import check_weights
from ast_model.pretrained.weight_sources import locate_weights
from pipeline.errors import WeightsError

log = logging.getLogger(__name__)


def open_initial_weights(train: TrainConfig, model: ASTConfig, resume: str) -> TrainConfig:
    """Make the address in `init` valid for every process, and check that the weights fit the model.

    Relative paths become absolute, since Ray's workers run in another folder. Resumed runs start from their checkpoint,
    so their initial weights are not checked. Raises WeightsError.
    """
    if not train.init:
        return train
    try:
        init = locate_weights(train.init)
    except WeightsError:
        if not resume:
            raise
        return train  # a resumed run no longer needs its initial weights
    if not resume:
        check_weights(init, model)
        log.info("training starts from %s", init)
    return dataclasses.replace(train, init=init)
