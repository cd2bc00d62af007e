"""Check of the initial weights, before anything costly."""

import dataclasses
import logging

from ast_model.config import ASTConfig, TrainConfig
from ast_model.pretrained.load import check_weights
from ast_model.pretrained.weight_sources import locate_weights
from pipeline.errors import WeightsError

log = logging.getLogger(__name__)


def open_initial_weights(train: TrainConfig, model: ASTConfig, resume: str) -> TrainConfig:
    """Resolve `init` to an address that every process can open, and check that the weights fit the model.

    Relative paths refer to the command's working folder, since Ray's workers run elsewhere. Resumed runs start from
    their checkpoint, so their initial weights are not checked. Raises WeightsError.
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
