"""Training settings. Each field's docstring is its `--help` text. Presets are in `ast_model.recipes`."""

from dataclasses import dataclass, field
from typing import Literal

from ast_model.config.flags import flag_of
from ast_model.config.model import Grid
from pipeline.config import check_above_0
from pipeline.errors import ConfigError

Sampler = Literal["uniform", "balanced", "without_replacement"]
Features = Literal["fbank", "waveform"]
Loss = Literal["bce", "ce"]
Precision = Literal["auto", "bf16", "fp16", "tf32", "fp32"]
Attention = Literal["auto", "cudnn", "flash", "efficient", "math"]
Compile = Literal["auto", "none", "blocks", "model"]
MicroBatchSize = int | Literal["auto"]
DeviceType = Literal["cpu", "cuda"]

DEFAULT_MICRO_BATCH = 12
AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
"""Mean and standard deviation of AudioSet's fbanks, as used to train AST."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule. Defaults are the paper's for the full AudioSet."""

    shape: Literal["steps", "cosine"] = "steps"
    """Shape after the warm-up: a decay every few epochs (AST), or a half cosine to 0 at the end of the run."""
    num_warmup_steps: int = 1000
    """Steps of the warm-up from 0; 0 disables it."""
    num_steps_per_stair: int = 50
    """Steps per stair of the warm-up; the learning rate is constant within a stair."""
    num_epochs_before_decay: int = 2
    """Epochs before the first decay of the learning rate."""
    num_epochs_per_decay: int = 1
    """Epochs between two decays of the learning rate."""
    decay_factor: float = 0.5
    """Factor by which each decay multiplies the learning rate."""
    final_factor: float = 0.0
    """Learning rate at the end of the cosine, relative to the peak."""
    max_decays: int | None = None
    """Maximum number of decays. Default: unlimited."""

    def __post_init__(self) -> None:
        if min(self.num_steps_per_stair, self.num_epochs_before_decay, self.num_epochs_per_decay) < 1:
            raise ConfigError(
                "--train.schedule.num-steps-per-stair, num-epochs-before-decay and num-epochs-per-decay must be at"
                f" least 1, found {self.num_steps_per_stair}, {self.num_epochs_before_decay} and"
                f" {self.num_epochs_per_decay}"
            )
        if self.num_warmup_steps < 0 or (self.max_decays is not None and self.max_decays < 0):
            raise ConfigError(
                "--train.schedule.num-warmup-steps and --train.schedule.max-decays must not be negative, found"
                f" {self.num_warmup_steps} and {self.max_decays}"
            )
        if not 0 <= self.final_factor <= 1:
            raise ConfigError(f"--train.schedule.final-factor must be between 0 and 1, found {self.final_factor}")
        if not 0 < self.decay_factor <= 1:
            raise ConfigError(f"--train.schedule.decay-factor must be above 0 and at most 1, found {self.decay_factor}")


@dataclass(frozen=True)
class AugmentConfig:
    """Data augmentation of training batches."""

    mixup_probability: float = 0.5
    """Probability of mixing a sample with a partner. Partners are drawn uniformly."""
    mixup_alpha: float = 10.0
    """Parameter of the mixing weight: λ ~ Beta(alpha, alpha)."""
    max_freq_mask_bins: int = 48
    """Maximum width of the frequency mask; 0 disables it."""
    max_time_mask_frames: int = 192
    """Maximum length of the time mask; 0 disables it."""
    noise: bool = False
    """Add uniform noise of random strength, up to 0.1 after normalising."""
    max_roll_frames: int = 0
    """Maximum circular shift in time; 0 disables it."""
    random_crop: bool = False
    """Train on a random segment of clips longer than the window. Evaluations use the first segment."""

    def __post_init__(self) -> None:
        if not 0 <= self.mixup_probability <= 1:
            raise ConfigError(
                f"--train.augment.mixup-probability must be between 0 and 1, found {self.mixup_probability}"
            )
        check_above_0(self, ["mixup_alpha"], "train.augment.")
        for name in ("max_freq_mask_bins", "max_time_mask_frames", "max_roll_frames"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"{flag_of(f'train.augment.{name}')} must not be negative, found {getattr(self, name)}"
                )


@dataclass(frozen=True)
class CacheConfig:
    """Cache of remote shards on each node."""

    folder: str = "~/.cache/audioset-ast"
    """Cache folder, shared by all processes of a node. Empty: read every clip from the store."""
    max_gb: float = 200.0
    """Maximum size of the cache; the least recently used shards are evicted first."""
    num_threads: int = 4
    """Number of shards that each process fetches concurrently."""

    def __post_init__(self) -> None:
        check_above_0(self, ("max_gb", "num_threads"), "train.cache.")


@dataclass(frozen=True)
class RegulariseConfig:
    """Structured dropout while training. The paper uses none."""

    patchout_freq: int = 0
    """Frequency rows of patches to drop per clip (PaSST: 4)."""
    patchout_time: int = 0
    """Time columns of patches to drop per clip (PaSST: 40)."""
    drop_path: float = 0.0
    """Drop-path rate of the last block; it grows linearly from 0 with depth."""

    def __post_init__(self) -> None:
        if min(self.patchout_freq, self.patchout_time) < 0:
            raise ConfigError(
                "--train.regularise.patchout-freq and --train.regularise.patchout-time must not be negative, found"
                f" {self.patchout_freq} and {self.patchout_time}"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"--train.regularise.drop-path must be at least 0 and below 1, found {self.drop_path}")

    def num_kept_patches(self, grid: Grid) -> int:
        """Count the patches that a clip keeps. Raises ConfigError if none are left."""
        num_freq, num_time = grid[0] - self.patchout_freq, grid[1] - self.patchout_time
        if min(num_freq, num_time) < 1:
            raise ConfigError(
                f"expected patchout to leave some of {grid[0]} rows and {grid[1]} columns of patches, found"
                f" --train.regularise.patchout-freq {self.patchout_freq} and --train.regularise.patchout-time"
                f" {self.patchout_time}; lower them"
            )
        return num_freq * num_time


@dataclass(frozen=True)
class CheckpointConfig:
    """Frequency and retention of checkpoints. Every epoch ends with a checkpoint.

    Both limits are checked every `log_every_steps` steps.
    """

    every_steps: int | None = None
    """Steps between checkpoints. Default: no limit by steps."""
    every_minutes: float | None = 5.0
    """Minutes between checkpoints. None: no limit by time."""
    num_kept: int = 2
    """Number of newest checkpoints to keep, in addition to the best epoch's."""
    patience_s: float = 600.0
    """Seconds to retry failed writes while training continues."""

    def __post_init__(self) -> None:
        if self.num_kept < 1:
            raise ConfigError(f"--train.checkpoints.num-kept must be at least 1, found {self.num_kept}")
        check_above_0(self, ("every_steps", "every_minutes"), "train.checkpoints.")
        if self.patience_s < 0:
            raise ConfigError(f"--train.checkpoints.patience-s must not be negative, found {self.patience_s}")


@dataclass(frozen=True)
class TrainConfig:
    """Training settings, without the model's shape and the location of the data."""

    train_splits: tuple[str, ...] = ("balanced_train", "unbalanced_train")
    """Splits to train on."""
    eval_split: str = "eval"
    """Split to evaluate on after each epoch."""
    eval_clips: str = ""
    """List of evaluation clips: ast-19185, audiomosaic-19012, panns-18885, common-18781, or a file with one YouTube id
    per line. Default: all clips of the split."""
    init: str = ""
    """Initial weights: a file, folder or hub name. Empty: random weights."""
    num_epochs: int = 5
    """Number of epochs."""
    draws_per_epoch: int | None = None
    """Samples per epoch. Default: the number of training clips."""
    sampler: Sampler = "balanced"
    """Sampling of clips in an epoch. uniform draws each clip once. balanced draws by class-balanced weight with
    replacement, as in AST. without_replacement draws by the same weight, each clip at most once."""
    weight_count_offset: float = 0.01
    """Constant added to each class count before weighting; higher values favour rare classes less."""
    group_draws: int = 0
    """Number of consecutive draws to group by shard, for stores with slow random access; 0 disables it. Batches then
    contain clips of few shards, but an epoch draws the same clips."""
    features: Features = "fbank"
    """Model input: stored fbanks, or stored waveforms. With waveforms, mixup mixes audio as in the paper."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    global_batch_size: int = 12
    """Samples per step over all ranks."""
    micro_batch_size: MicroBatchSize = DEFAULT_MICRO_BATCH
    """Samples per forward pass on each rank; gradients add up to the global batch. auto finds the largest size that
    fits into the GPU's memory, and is 12 on a CPU."""
    learning_rate: float = 1e-5
    """Peak learning rate of Adam."""
    betas: tuple[float, float] = (0.95, 0.999)
    """Decay rates of Adam's two moments."""
    weight_decay: float = 5e-7
    """Factor of Adam's L2 penalty or of AdamW's decay."""
    decoupled_weight_decay: bool = False
    """Use AdamW: decoupled decay, without decaying biases and LayerNorms."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: Loss = "bce"
    """Loss: binary cross-entropy per class (bce) or cross-entropy over classes (ce)."""
    mean: float | None = None
    """Mean for normalising fbanks. Default: the snapshot's."""
    std: float | None = None
    """Standard deviation for normalising fbanks. Default: the snapshot's."""
    average_last_epochs: int = 0
    """Number of final epochs to average the weights of; 0 disables averaging."""
    seed: int = 0
    """Seed of initial weights, draws and augmentation."""
    precision: Precision = "auto"
    """Precision of the forward pass. auto selects bf16 on GPUs that support it, fp16 on other GPUs and fp32 on CPUs.
    fp16 uses loss scaling. tf32 rounds the inputs of float32 products to 10 bits; fp32 is exact."""
    attention: Attention = "auto"
    """Attention kernels. auto benchmarks them on a GPU and falls back to the next fastest on non-finite gradients; on
    a CPU it leaves the choice to torch."""
    compile: Compile = "none"
    """Part to compile: the model's blocks, or the whole model with augmentation and loss, which takes longer to
    compile. auto compiles the blocks if the machine has a GPU and a C compiler."""
    activation_checkpointing: bool = False
    """Recompute the activations of blocks in the backward pass. Saves memory and takes a third more time."""
    regularise: RegulariseConfig = field(default_factory=RegulariseConfig)
    layer_decay: float = 1.0
    """Factor by which the learning rate shrinks from each block to the block below. 1 gives equal rates."""
    teachers: tuple[str, ...] = ()
    """Teachers in the store (see jobs/teachers.py import). Their mean probabilities are mixed into the targets. Clips
    without scores keep their labels."""
    teacher_share: float = 0.5
    """Share of the teachers' probabilities in the targets. The labels make up the rest."""
    max_bad_steps: int = 20
    """Number of consecutive steps with a non-finite loss or gradient after which the run ends. Each such step is
    skipped."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    num_reader_threads: int = 2
    """Threads per rank that prefetch batches."""
    log_every_steps: int = 20
    """Steps between two logs of metrics."""
    allow_empty_classes: bool = False
    """Allow classes without training clips."""

    def __post_init__(self) -> None:
        counts = "num_epochs global_batch_size num_reader_threads log_every_steps max_bad_steps"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise ConfigError(f"{flag_of(f'train.{name}')} must be at least 1, found {getattr(self, name)}")
        if self.clips_per_micro_batch < 1:
            raise ConfigError(f"--train.micro-batch-size must be auto or at least 1, found {self.micro_batch_size}")
        for name in ("weight_count_offset", "group_draws", "average_last_epochs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{flag_of(f'train.{name}')} must not be negative, found {getattr(self, name)}")
        for name in ("layer_decay", "teacher_share"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{flag_of(f'train.{name}')} must be above 0 and at most 1, found {value}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"--train.betas must be at least 0 and below 1, found {self.betas}")
        check_above_0(self, ["learning_rate"], "train.")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("set both --train.mean and --train.std, or neither")

    @property
    def clips_per_micro_batch(self) -> int:
        """Micro-batch size as a number, also before auto is resolved."""
        return DEFAULT_MICRO_BATCH if self.micro_batch_size == "auto" else self.micro_batch_size

    @property
    def first_averaged_epoch(self) -> int:
        """First averaged epoch, counted from 0; `num_epochs` if no epoch is averaged."""
        return max(0, self.num_epochs - self.average_last_epochs)
