"""Mutable state of a training run: weights, optimizer, averaged weights and loop state."""

from collections.abc import Mapping
from typing import Any

from torch.amp.grad_scaler import GradScaler

from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, Tensors
from ast_model.config import TrainConfig
from ast_model.distributed import World
from ast_model.model import AST
from ast_model.training.optimizer import (
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    update_average,
)


class TrainingState:
    """Mutable state of a training run on one rank's device. Checkpoints store all of it."""

    def __init__(self, model: AST, config: TrainConfig, world: World):
        self.config, self.world = config, world
        self.loop = LoopState()
        self.model = model.to(world.device)
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = GradScaler(world.device.type, enabled=world.resolve(config.precision) == "fp16")
        self.average: Tensors = {}

    def update_average(self) -> None:
        """Add the current weights to the running mean if the finished epoch is one of the last epochs to average."""
        if self.loop.epoch > self.config.first_averaged_epoch:
            self.loop.num_averaged += 1
            update_average(self.average, self.model.state_dict(), self.loop.num_averaged)

    def model_with(self, weights: Tensors) -> AST:
        """Return a new model of the same shape with the given weights."""
        model = AST(self.model.config).to(self.world.device)
        model.load_state_dict(weights)
        return model

    def checkpoint(self, description: Mapping[str, Any]) -> Checkpoint:
        """Return a checkpoint that shares memory with the state, so later steps change it."""
        self.loop.scaler = self.scaler.state_dict()
        return Checkpoint(
            loop=self.loop,
            model=self.model.state_dict(),
            optimizer=optimizer_state(self.optimizer),
            average=self.average,
            description=description,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load the state from a checkpoint."""
        device = self.world.device
        self.loop = checkpoint.loop
        self.model.load_state_dict(checkpoint.model)
        load_optimizer_state(self.optimizer, checkpoint.optimizer)
        if self.loop.scaler:  # empty if the checkpoint was written in another precision
            self.scaler.load_state_dict(self.loop.scaler)
        self.average = {name: value.to(device) for name, value in checkpoint.average.items()}
