"""Settings of a training. The docstring under a field is its `--help` text; presets are in `ast_model.recipes`."""

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
"""Of AudioSet's fbanks, as AST was trained with them."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Course of the learning rate; the defaults are those of the full AudioSet."""

    shape: Literal["steps", "cosine"] = "steps"
    """After the warm-up: a decay every few epochs (AST), or half a cosine down to 0 at the end of the run."""
    num_warmup_steps: int = 1000
    """Steps over which the learning rate climbs from 0; 0 for no warm-up."""
    num_steps_per_stair: int = 50
    """Steps of the warm-up for which the learning rate stays the same."""
    num_epochs_before_decay: int = 2
    """Epochs before the learning rate decays for the first time."""
    num_epochs_per_decay: int = 1
    """Epochs from one decay to the next."""
    decay_factor: float = 0.5
    """Factor of each decay of the learning rate."""
    max_decays: int | None = None
    """Decays after which the learning rate stays the same; none: it decays to the end."""

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
        if not 0 < self.decay_factor <= 1:
            raise ConfigError(f"--train.schedule.decay-factor must be above 0 and at most 1, found {self.decay_factor}")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training batches."""

    mixup_probability: float = 0.5
    """Share of draws that are mixed with a partner drawn uniformly."""
    mixup_alpha: float = 10.0
    """λ ~ Beta(alpha, alpha)."""
    max_freq_mask_bins: int = 48
    """Widest frequency mask; 0 for none."""
    max_time_mask_frames: int = 192
    """Widest time mask; 0 for none."""
    noise: bool = False
    """Add uniform noise of random strength, up to 0.1 after normalising."""
    max_roll_frames: int = 0
    """Roll in time by up to so many frames; what leaves at one end comes back at the other."""
    random_crop: bool = False
    """Take a random stretch of a clip that is longer than the window, not its first; evaluations take the first."""

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
    """A node's own copies of shards of a store that is not local."""

    folder: str = "~/.cache/audioset-ast"
    """Folder on each node, shared by its processes; empty reads every clip from the store."""
    max_gb: float = 200.0
    """Its largest size; the least recently used shards make room."""
    num_threads: int = 4
    """Shards that a process fetches at a time."""

    def __post_init__(self) -> None:
        check_above_0(self, ("max_gb", "num_threads"), "train.cache.")


@dataclass(frozen=True)
class RegulariseConfig:
    """Parts of the model that are dropped while training; none in the paper."""

    patchout_freq: int = 0
    """Rows of patches, of one frequency each, that a clip goes without (PaSST: 4)."""
    patchout_time: int = 0
    """Columns of patches, of one time each, that a clip goes without (PaSST: 40)."""
    drop_path: float = 0.0
    """Chance of the last block's branches to be left out for a clip; it grows with depth from 0."""

    def __post_init__(self) -> None:
        if min(self.patchout_freq, self.patchout_time) < 0:
            raise ConfigError(
                "--train.regularise.patchout-freq and --train.regularise.patchout-time must not be negative, found"
                f" {self.patchout_freq} and {self.patchout_time}"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"--train.regularise.drop-path must be at least 0 and below 1, found {self.drop_path}")

    def num_kept_patches(self, grid: Grid) -> int:
        """Count the patches that a clip keeps. Raises ConfigError if none is left."""
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
    """When checkpoints are written, besides at the end of each epoch, and which are kept.

    Both limits are looked at with each line of metrics, every `log_every_steps`.
    """

    every_steps: int | None = None
    """Steps from one checkpoint to the next; none: only by time."""
    every_minutes: float | None = 5.0
    """Minutes from one checkpoint to the next; none: only by steps."""
    num_kept: int = 2
    """Newest checkpoints that are kept; the best one of the epochs' is kept besides."""
    patience_s: float = 600.0
    """Seconds for which a storage that refuses is asked again, while the training goes on."""

    def __post_init__(self) -> None:
        if self.num_kept < 1:
            raise ConfigError(f"--train.checkpoints.num-kept must be at least 1, found {self.num_kept}")
        check_above_0(self, ("every_steps", "every_minutes"), "train.checkpoints.")
        if self.patience_s < 0:
            raise ConfigError(f"--train.checkpoints.patience-s must not be negative, found {self.patience_s}")


@dataclass(frozen=True)
class TrainConfig:
    """A training, apart from the model's shape and the data's place."""

    train_splits: tuple[str, ...] = ("balanced_train", "unbalanced_train")
    """Splits to train on."""
    eval_split: str = "eval"
    """Split to evaluate on after each epoch."""
    init: str = ""
    """Weights to start from: a file, folder or hub name; empty for random ones."""
    num_epochs: int = 5
    """Epochs in all."""
    draws_per_epoch: int | None = None
    """Samples per epoch; as many as there are clips unless set."""
    sampler: Sampler = "balanced"
    """How an epoch's samples are drawn: each clip once, by class-balanced weight with replacement (AST), or by
    weight without replacement."""
    weight_count_offset: float = 0.01
    """Added to a class's number of clips before it becomes a weight: the higher, the less rare classes stand out."""
    group_draws: int = 0
    """Draws within which those of the same shard come together, for stores where random access is slow; 0 for none.
    Batches then hold clips of few shards; what an epoch draws stays the same."""
    features: Features = "fbank"
    """Read stored fbanks, or the audio kept beside them: mixes waveforms as the paper does."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    global_batch_size: int = 12
    """Samples per step, over all ranks."""
    micro_batch_size: MicroBatchSize = DEFAULT_MICRO_BATCH
    """Samples that a rank's device takes at a time; gradients add up to the global batch. auto tries at the start which
    are the most that a GPU has the memory for; on a CPU it is 12."""
    learning_rate: float = 1e-5
    """Peak learning rate of Adam."""
    betas: tuple[float, float] = (0.95, 0.999)
    """Decay rates of Adam's two averages."""
    weight_decay: float = 5e-7
    """Adam's L2 term, or AdamW's decay."""
    decoupled_weight_decay: bool = False
    """Decay weights apart from their gradients, as AdamW does, and neither biases nor LayerNorms."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: Loss = "bce"
    """Binary cross-entropy per class, or cross-entropy over classes."""
    mean: float | None = None
    """Mean that fbanks are normalised with; the snapshot's unless set."""
    std: float | None = None
    """Standard deviation that fbanks are normalised with; the snapshot's unless set."""
    average_last_epochs: int = 0
    """Epochs at the end whose weights are averaged, all of them if there are fewer; 0 for no averaging."""
    seed: int = 0
    """Seed of weights, draws and augmentation."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass: auto is bf16 on a GPU that has it (else fp16), and fp32 on a CPU. fp16 scales the
    loss; tf32 is float32 whose products round their inputs to 10 bits; fp32 rounds nothing."""
    attention: Attention = "auto"
    """Kernels of the attention. auto measures on a GPU which are the fastest for this training, and changes over to the
    next best ones if those give gradients that are not finite; on a CPU it leaves the choice to torch."""
    compile: Compile = "none"
    """Compile the model's blocks, or the whole model with augmentation and loss, which takes longer at first; the log
    tells the time. auto compiles the blocks on a GPU whose machine has a C compiler, else nothing."""
    activation_checkpointing: bool = False
    """Keep only the blocks' inputs for the backward and compute the rest again: less memory, a third more time."""
    regularise: RegulariseConfig = field(default_factory=RegulariseConfig)
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the one before it; 1 for the same everywhere."""
    teachers: tuple[str, ...] = ()
    """Teachers in the store, as jobs/teachers.py import names them, whose mean probabilities are learned beside the
    labels; clips without any are learned by their labels alone."""
    teacher_share: float = 0.5
    """The teachers' part in the targets of the clips that they have scored."""
    max_bad_steps: int = 20
    """Steps in a row whose loss or gradient is not finite, after which the run ends; each is skipped."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    num_reader_threads: int = 2
    """Threads per rank that read batches ahead."""
    log_every_steps: int = 20
    """Steps between two lines of metrics."""
    allow_empty_classes: bool = False
    """Train although a class has no training clip."""

    def __post_init__(self) -> None:
        counts = "num_epochs global_batch_size num_reader_threads log_every_steps max_bad_steps"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise ConfigError(f"{flag_of(f'train.{name}')} must be at least 1, found {getattr(self, name)}")
        if self.clips_at_a_time < 1:
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
    def clips_at_a_time(self) -> int:
        """`micro_batch_size` as a number, also while auto has not been settled, and where it can't be."""
        return DEFAULT_MICRO_BATCH if self.micro_batch_size == "auto" else self.micro_batch_size

    @property
    def first_averaged_epoch(self) -> int:
        """First epoch, counted from 0, whose weights are averaged; num_epochs if none's are."""
        return max(0, self.num_epochs - self.average_last_epochs)
