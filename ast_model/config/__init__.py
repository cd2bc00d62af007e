"""Settings of the model and its training. Nothing here imports PyTorch."""

from ast_model.config.flags import flag_of, flatten
from ast_model.config.model import ASTConfig, Grid
from ast_model.config.train import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    DEFAULT_MICRO_BATCH,
    Attention,
    AugmentConfig,
    CacheConfig,
    CheckpointConfig,
    Compile,
    DeviceType,
    Features,
    Loss,
    MicroBatchSize,
    Precision,
    RegulariseConfig,
    Sampler,
    ScheduleConfig,
    TrainConfig,
)

__all__ = [
    "AUDIOSET_MEAN",
    "AUDIOSET_STD",
    "DEFAULT_MICRO_BATCH",
    "ASTConfig",
    "Attention",
    "AugmentConfig",
    "CacheConfig",
    "CheckpointConfig",
    "Compile",
    "DeviceType",
    "Features",
    "Grid",
    "Loss",
    "MicroBatchSize",
    "Precision",
    "RegulariseConfig",
    "Sampler",
    "ScheduleConfig",
    "TrainConfig",
    "flag_of",
    "flatten",
]
