"""Costs of a training, computed: operations at an assumed share of a GPU's peak, and the exchange of gradients."""

from dataclasses import dataclass

from ast_model.config import FORWARDS_PER_STEP, PEAK_FLOPS
from ast_model.recipes import Recipe

MFU = {"H200": 0.38, "L40S": 0.33}
"""Share of a GPU's 16-bit peak that a training reaches.

An H200's as `make gpu` measured it; an L40S's by computation: products and attention at the same share of its peak as
an H100's, the rest at its bandwidth. After a change `python scripts/write_costs.py` updates all that follows from it,
in `recipes` and in docs/cluster.md.
"""


@dataclass(frozen=True)
class Accelerators:
    """GPUs that train together."""

    name: str
    count: int
    exchange_bytes_per_s: float
    """Bytes a second that the slowest link between them carries each way."""

    @property
    def flops_per_s(self) -> float:
        """Operations a second that one of them reaches."""
        return MFU[self.name] * PEAK_FLOPS[self.name]


H200 = Accelerators("H200", 1, exchange_bytes_per_s=450e9)
"""NVLink."""
L40S_NODE = Accelerators("L40S", 4, exchange_bytes_per_s=20e9)
"""The four GPUs of an AWS g6e.12xlarge; PCIe 4."""
L40S_CLUSTER = Accelerators("L40S", 32, exchange_bytes_per_s=10e9)
"""Eight of these nodes; 80 % of a node's 100 Gbit/s."""


@dataclass(frozen=True)
class TrainingCost:
    """Time that a training takes, by computation."""

    num_steps: int
    flops_per_sample: float
    compute_s: float
    """Of a step, on the GPU with the most samples."""
    exchange_s: float
    """Of a step's gradients. DistributedDataParallel hides a part of it behind the backward, which is not counted."""
    num_accelerators: int

    @property
    def hours(self) -> float:
        return self.num_steps * (self.compute_s + self.exchange_s) / 3600

    @property
    def accelerator_hours(self) -> float:
        return self.hours * self.num_accelerators


def estimate_cost(recipe: Recipe, num_clips: int, accelerators: Accelerators) -> TrainingCost:
    """Compute what a recipe costs on `num_clips` training clips; evaluations and reading are left out.

    Gradients are float32 and go round a ring: each rank sends and receives them 2 (n - 1) / n times.
    """
    model, train, count = recipe.model, recipe.train, accelerators.count
    flops_per_sample = FORWARDS_PER_STEP * model.flops_with(train.regularise.num_kept_patches(model.grid))
    samples_per_rank = -(-train.global_batch_size // count)
    gradient_bytes = 4 * model.num_parameters
    return TrainingCost(
        num_steps=train.num_epochs * ((train.draws_per_epoch or num_clips) // train.global_batch_size),
        flops_per_sample=flops_per_sample,
        compute_s=samples_per_rank * flops_per_sample / accelerators.flops_per_s,
        exchange_s=2 * (count - 1) / count * gradient_bytes / accelerators.exchange_bytes_per_s,
        num_accelerators=count,
    )


def cost_sentence(recipe: Recipe, num_clips: int, accelerators: Accelerators = H200) -> str:
    """Return the first words of a preset's `Cost:`, all that is computed."""
    cost = estimate_cost(recipe, num_clips, accelerators)
    num_samples = recipe.train.num_epochs * (recipe.train.draws_per_epoch or num_clips)
    samples = f"{num_samples / 1e6:.1f} million" if num_samples >= 1e6 else f"{num_samples:,}"
    time = f"{cost.hours:.1f} hours" if cost.hours >= 1 else f"{60 * cost.hours:.0f} minutes"
    machine = f"of {accelerators.count} {accelerators.name}" if accelerators.count > 1 else f"of an {accelerators.name}"
    share = f"at {100 * MFU[accelerators.name]:.0f} % of the peak"
    return f"{samples} samples of {cost.flops_per_sample / 1e9:.0f} GFLOP, by computation {time} {machine} {share}"
