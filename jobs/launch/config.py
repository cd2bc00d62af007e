"""Settings of the jobs. The docstring under a field is its `--help` text; what is heavy to import stays out of here."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ast_model.config import ASTConfig, DeviceType, TrainConfig
from ast_model.service.limits import LOOPBACK, Limits
from pipeline.config import PreprocessConfig
from pipeline.errors import ConfigError
from pipeline.estimate import CostConfig

MINIATURE = "miniature"


@dataclass(frozen=True)
class Exists:
    """Mark of a setting whose file or folder is looked for, if it is local, before anything is imported."""

    advice: str
    inside: str = ""
    """A name that the folder must contain."""


NO_PREFIX = tyro.conf.arg(name="")
"""Of a group whose flags stand without its name: `--workers`, not `--ray.workers`."""
Input = Annotated[str, Exists("name a file or folder that is there")]
StoreRoot = Annotated[
    str, Exists("name the --root of a store, or make one with jobs/audioset.py or jobs/preprocess.py")
]
Data = Annotated[PreprocessConfig, NO_PREFIX, tyro.conf.EnumChoicesFromValues]


@dataclass(frozen=True)
class RayConfig:
    """Ray Train settings."""

    workers: str = "2"
    """Ranks, each with one CPU or one GPU: a number, or 2:8 to go on with what is left when nodes are lost and to
    grow again when they come back."""
    use_gpu: Annotated[bool | None, tyro.conf.arg(metavar="| --no-use-gpu")] = False
    """Give each rank a GPU, also under torchrun. Unset: if the cluster has one."""
    max_failures: int = 3
    """Failures without a new checkpoint in between after which the training ends; while there is progress, it starts
    again from the newest one however often workers are lost. Nodes that announce their end don't count."""
    start_timeout_s: float = 600.0
    """Seconds to wait for the cluster to have the (least) workers."""

    def __post_init__(self) -> None:
        fewest, most = self.num_workers
        if not 1 <= fewest <= most:
            raise ConfigError(f"--workers must be a number above 0, or two such as 2:8, found {self.workers}")
        if self.max_failures < 0:
            raise ConfigError(f"--max-failures must not be negative, found {self.max_failures}")

    @property
    def num_workers(self) -> tuple[int, int]:
        """The fewest and the most."""
        parts = self.workers.split(":")
        if not (len(parts) in (1, 2) and all(part.isdecimal() for part in parts)):
            raise ConfigError(f"--workers must be a number, or two such as 2:8, found {self.workers!r}")
        return int(parts[0]), int(parts[-1])

    @property
    def device_type(self) -> DeviceType:
        return "cuda" if self.use_gpu else "cpu"

    @property
    def worker_resources(self) -> dict[str, float]:
        return {"CPU": 1, "GPU": 1} if self.use_gpu else {"CPU": 1}


@dataclass(frozen=True)
class AudioSetConfig:
    """All settings of the main job."""

    preset: tyro.conf.Suppress[str] = "audioset_full"
    root: str = "data/audioset"
    """Folder or s3:// address of the store: metadata, shards, snapshots, runs. A relative one is taken from the
    current folder, in a Ray job from ~/audioset-ast."""
    data: Data = field(default_factory=PreprocessConfig)
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=RayConfig)
    resume: str = ""
    """Run to go on with, on its own snapshot and by the same command otherwise; empty for a new one."""


@dataclass(frozen=True)
class TrainJobConfig:
    """All settings of a training."""

    preset: tyro.conf.Suppress[str] = "demo"
    root: StoreRoot = "data/demo"
    """Folder or s3:// address of the store. A relative one is taken from the current folder, in a Ray job from
    ~/audioset-ast."""
    snapshot: str = ""
    """Snapshot to train on; the latest unless named, a resumed run's own."""
    resume: str = ""
    """Run to go on with, by the same command otherwise; empty for a new one."""
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=RayConfig)


@dataclass(frozen=True)
class RunCommand:
    """Fetch and convert what is missing or failed in a way that may pass, and publish a snapshot if something changed.

    Exit codes: 0 done; 75 another run holds the store, try later; 1 an error, whose message says what to do.
    """

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    track: bool = True
    """Log the run to MLflow."""


@dataclass(frozen=True)
class PlanCommand:
    """Show what is due in a run and what that costs. Touches nothing."""

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    costs: CostConfig = field(default_factory=CostConfig)


@dataclass(frozen=True)
class StatusCommand:
    """Show how far the store is, per split, reason and class. Touches nothing."""

    root: Annotated[str, Exists("run `preprocess.py run` first, or name another --root", "metadata")] = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    num_classes: int = 20
    """Classes to show, those with the least yield first."""


@dataclass(frozen=True)
class VerifyCommand:
    """Reread all shards and compare them with their sidecars."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    repair: bool = False
    """Remove the shards that are wrong and fetch their clips again."""


@dataclass(frozen=True)
class ListSnapshots:
    """List the snapshots, the latest last, and the runs in the store that refer to them."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""


@dataclass(frozen=True)
class DiffSnapshots:
    """Compare two snapshots: clips that are new, gone, moved or relabelled, and clips per split and class."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    old: str = ""
    """Snapshot to compare from."""
    new: str = ""
    """Snapshot to compare with; unset the latest."""


@dataclass(frozen=True)
class PruneSnapshots:
    """Remove snapshots that are not the latest and that no run refers to, in the store or in MLflow. Shards stay."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    keep: tuple[str, ...] = ()
    """Snapshots to keep all the same."""
    track: bool = True
    """Ask MLflow which runs there are."""
    dry_run: bool = False
    """Only list what would be removed."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation."""

    checkpoints: tuple[str, ...]
    """Folders, files or hub names, of any strides and lengths. Several are an ensemble: the mean of their scores."""
    root: StoreRoot = "data/demo"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot to take clips from; the latest unless named."""
    split: str = "eval"
    """Split to score."""
    output: str = ""
    """Folder for scores, tables and plots; a new one in ROOT/evaluations, or ./evaluations for s3://, unless set."""
    classes: tuple[str, ...] = ()
    """Classes to draw precision against recall of, by name; those with the most clips unless named."""
    bootstrap: int = 0
    """Resamples for the 95 % interval of mAP; 0 for none."""
    batch_size: int = 16
    """Clips scored at a time."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.bootstrap < 0:
            raise ConfigError(
                f"--batch-size must be at least 1 and --bootstrap not negative, found {self.batch_size} and"
                f" {self.bootstrap}"
            )


@dataclass(frozen=True)
class ImportTeacher:
    """Bring a teacher's scores into a store: matched by id, graded by the labels, as probabilities."""

    name: str
    """Name for --train.teachers."""
    scores: tuple[str, ...]
    """Files of one teacher, one after another: .npy with --index, parquet or HDF5 of ids and scores (or of values and
    the numbers of their classes, as CED's), .npz of jobs/evaluate.py."""
    index: Input = ""
    """Which row of a .npy is whose: {id: row}, pickled or JSON."""
    allow_unnamed_rows: bool = False
    """Take an index that does not name each row; rows without a name are left out."""
    labels: Input = ""
    """A class_labels_indices.csv of the columns; they are the snapshot's classes unless set."""
    stated_map: float | None = None
    """mAP that its publisher states; scores that reach less than half of it are refused."""
    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot whose clips and labels they are matched with; the latest unless named."""

    def __post_init__(self) -> None:
        if self.index and isinstance(self.scores, tuple) and len(self.scores) != 1:
            raise ConfigError(f"--index belongs to one .npy in --scores, found {len(self.scores)} files")
        if self.stated_map is not None and not 0 < self.stated_map < 1:
            raise ConfigError(f"--stated-map must be between 0 and 1, such as 0.495, found {self.stated_map}")


@dataclass(frozen=True)
class ListTeachers:
    """List the teachers of a store."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""


@dataclass(frozen=True)
class PredictConfig:
    """Settings of tagging."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    audio: tuple[str, ...]
    """Files, addresses, folders and s3:// prefixes that are searched at any depth, .tar files, and .txt files with one
    of these per line."""
    labels: Input = ""
    """The class_labels_indices.csv of an official .pth, which names no classes."""
    top_k: int = 5
    """Classes shown of each file or window."""
    timeline: bool = False
    """Tag windows of each file instead of the whole."""
    window_s: float | None = None
    """Length of a window; the model's unless set."""
    hop_s: float | None = None
    """From one window's start to the next; half a window unless set."""
    calibrated: bool = False
    """Return probabilities, and only classes above their thresholds, by the checkpoint's calibration.json."""
    format: Literal["text", "csv", "jsonl", "parquet", "raven", "audacity"] = "text"
    """Text for people; tables for programs; selections for Raven and labels for Audacity, a file for each sound."""
    output: str = ""
    """File to write to, for Raven and Audacity a folder; text and CSV go to the terminal unless it is set. With
    --format parquet it may be a folder, too, or an s3:// prefix: then the files are tagged in parallel on Ray, and what
    is tagged is kept, so that the same command goes on where an interrupted one was. Name a folder for many files."""
    embeddings: bool = False
    """Keep the embedding of each file or window as well; needs such a folder."""
    files_per_task: int = 100
    """Files that a Ray task tags, and that a kill costs at most for each processor."""
    plot: str = ""
    """Folder to draw a PNG of each file into: its spectrogram, and the strongest classes below it."""
    device: str = ""
    """cpu or cuda; a GPU if there is one unless set."""

    @property
    def is_parallel(self) -> bool:
        """Whether files are tagged on Ray, in groups that are kept."""
        return self.format == "parquet" and bool(self.output) and not self.output.endswith(".parquet")

    def __post_init__(self) -> None:
        for name in ("top_k", "files_per_task"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {value}")
        if not self.timeline and (self.window_s is not None or self.hop_s is not None):
            raise ConfigError("--window-s and --hop-s belong to --timeline: add it, or leave them out")
        if not self.output and self.format not in ("text", "csv"):
            raise ConfigError(f"expected --output for --format {self.format}, found none: name a file or folder")
        if self.embeddings and not self.is_parallel:
            raise ConfigError(
                "--embeddings needs --format parquet and a folder as --output, such as tags/, found"
                f" --format {self.format} and {self.output or 'none'}"
            )
        if self.plot and self.is_parallel:
            raise ConfigError("--plot draws what one process tags: leave it out, or name a file as --output")


@dataclass(frozen=True)
class ServeConfig:
    """Settings of the service."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, an official .pth, or models:/audioset-ast@champion,
    which is followed: a new champion is loaded beside the old one, and then takes over."""
    labels: Input = ""
    """The class_labels_indices.csv of an official .pth, which names no classes."""
    root: str = "data/demo"
    """Folder or s3:// address of the store whose registry models:/… is looked up in."""
    calibrated: bool = False
    """Answer with probabilities, and only classes above their thresholds, by the checkpoint's calibration.json."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs --token-file."""
    port: int = 8000
    """Port to listen on."""
    token_file: Input = ""
    """File whose first line every request must bring as Authorization: Bearer TOKEN."""
    num_replicas: int = 1
    """Copies of the model, each a process with a CPU, or with a GPU if --use-gpu is set."""
    use_gpu: bool = False
    """Give each copy a GPU."""
    batch_size: int = 16
    """Windows, of all requests at a copy, in one batch."""
    batch_wait_ms: float = 5.0
    """How long a batch that isn't full waits for more."""
    poll_s: float = 60.0
    """How often the registry is asked whether the alias has moved."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.token_file:
            raise ConfigError(
                f"expected --token-file for --host {self.host}, found none: whoever reaches the address could use the"
                " service; name a file that holds a token"
            )
        for name in ("num_replicas", "batch_size", "poll_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, found {getattr(self, name)}")


@dataclass(frozen=True)
class CalibrateConfig:
    """Settings of a calibration."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    root: str = "data/demo"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot to take clips from; the latest unless named."""
    split: str = "eval"
    """Split to fit to; none that the checkpoint was trained on."""
    method: Literal["platt", "temperature", "none"] = "platt"
    """Scale the logits per class, or all by one temperature (always for cross-entropy), or only choose thresholds."""
    precision: float | None = None
    """Precision that thresholds aim at; the best F1 unless set."""
    output: str = ""
    """Folder for calibration.json; the checkpoint's own unless set."""
    batch_size: int = 16
    """Clips scored at a time."""

    def __post_init__(self) -> None:
        if self.precision is not None and not 0 < self.precision <= 1:
            raise ConfigError(f"--precision must be above 0 and at most 1, found {self.precision}")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, found {self.batch_size}")


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    like: tuple[str, ...] = ()
    """Sounds to find others like: files, or folders of them. Several count by the mean of their embeddings."""
    label: str = ""
    """Class of the store, whose clips to find others like."""
    audio: tuple[str, ...] = ()
    """Files, and folders at any depth, to search in; the store's clips unless set."""
    root: str = "data/own"
    """Folder or s3:// address of the store. It keeps its clips' embeddings."""
    snapshot: str = ""
    """Snapshot of the store; the latest unless named."""
    num_results: int = 20
    """Nearest clips to show."""
    output: str = "neighbours.html"
    """Page to write, with players; the table lies beside it, as .csv."""

    def __post_init__(self) -> None:
        if self.num_results < 1:
            raise ConfigError(f"--num-results must be at least 1, found {self.num_results}")


@dataclass(frozen=True)
class ExportConfig:
    """Settings of an export."""

    format: tyro.conf.Suppress[str]
    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    output: str
    """The folder or file to write; nothing may be there."""
    labels: Input = ""
    """The class_labels_indices.csv of an official .pth, which names no classes."""


@dataclass(frozen=True)
class ModelsCommand:
    """Location of the models."""

    root: str = "data/demo"
    """Folder or s3:// address of the store; MLFLOW_TRACKING_URI names the server unless its own database is meant."""


@dataclass(frozen=True)
class ListModels(ModelsCommand):
    """Print all versions, newest first, with run, snapshot, preprocessing runs and mAP."""

    snapshot: str = ""
    """Only those trained on this snapshot."""


@dataclass(frozen=True)
class CompareVersions(ModelsCommand):
    """Print by how much a version is better than another, on the clips that both were measured on."""

    version: str = "latest"
    """Number, champion or latest."""
    against: str = "champion"
    """Number, champion or latest."""


@dataclass(frozen=True)
class PromoteVersion(ModelsCommand):
    """Make a version the champion, whatever the figures say; what they say is noted."""

    version: str = tyro.MISSING
    """Number or latest."""


@dataclass(frozen=True)
class FetchModel(ModelsCommand):
    """Copy a model to a folder, as MLflow loads and serves it; its checkpoint is in artifacts/checkpoint."""

    version: str = "champion"
    """Number, champion or latest."""
    to: str = "model"
    """Folder to make."""


@dataclass(frozen=True)
class ExportVersion(ModelsCommand):
    """Write a version for the Hugging Face hub: weights, config and a card of what MLflow knows of it."""

    version: str = "champion"
    """Number, champion or latest; a run's best and averaged weights are versions of their own."""
    to: str = tyro.MISSING
    """Folder to make; its name is the model's."""
    licence: str = ""
    """Identifier of the weights' licence, such as apache-2.0; the card says so if it is not stated."""


@dataclass(frozen=True)
class PublishRun(ModelsCommand):
    """Bring a finished run's pictures, tables and models to MLflow, where that failed before."""

    run: str = tyro.MISSING
    """MLflow's id, the run's name there, or its folder in the store."""


@dataclass(frozen=True)
class UIConfig:
    """Serve MLflow's pages of a local store on 127.0.0.1, and show its runs. Trainings may log to the same address."""

    root: str = "data/demo"
    """Folder of the store."""
    port: int = 5000
    """Port to listen on."""
    create: bool = False
    """Begin a database where the store has none, for a server that trainings are to log to."""


@dataclass(frozen=True)
class CompareConfig:
    """Settings of a comparison of runs."""

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN RUN…")]]
    """Runs; each is compared with the first."""
    root: str = "data/demo"
    """Folder or s3:// address of the store; MLFLOW_TRACKING_URI names the server unless its own database is meant."""
    output: str = "comparison.html"
    """File to write the page to."""

    def __post_init__(self) -> None:
        if self.runs is not tyro.MISSING and len(set(self.runs)) < 2:
            raise ConfigError(f"expected at least two runs to compare, found {', '.join(self.runs) or 'none'}")


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Settings of a job for a published set of recordings."""

    preset: tyro.conf.Suppress[str]
    data: Input = ""
    """The official folder, unpacked; empty to fetch it."""
    archive: str
    """Address that the set is fetched from."""
    digest: str
    """sha256 or md5 of the archive; nothing is compared if empty."""
    root: str
    """Folder of the store. A relative one is taken from the current folder, in a Ray job from ~/audioset-ast."""
    resume: str = ""
    """Run to go on with, by the same command otherwise; empty for a new one."""
    model: ASTConfig = field(default_factory=ASTConfig)
    train: Annotated[TrainConfig, NO_PREFIX] = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=lambda: RayConfig("1", use_gpu=None))


@dataclass(frozen=True, kw_only=True)
class FoldsConfig(PublishedConfig):
    """Settings of a job for a set with fixed folds."""

    num_folds = 0
    """Of the official set; no setting."""
    folds: tuple[int, ...]
    """Folds to test on, each after training on the others."""
    choose: Literal["last", "best_on_test"] = "last"
    """Epoch that counts: the last one, or the one whose mean accuracy on the test folds is best, as some papers do."""

    def __post_init__(self) -> None:
        known = set(range(1, self.num_folds + 1))
        if not self.folds or not set(self.folds) <= known or len(set(self.folds)) != len(self.folds):
            raise ConfigError(f"--folds must be some of 1 to {self.num_folds}, each once, found {self.folds}")


@dataclass(frozen=True, kw_only=True)
class ESC50Config(FoldsConfig):
    """All settings of the job. GitHub packs the archive on demand, so there is no official digest."""

    num_folds = 5
    preset: tyro.conf.Suppress[str] = "esc50"
    archive: str = "https://github.com/karoldvl/ESC-50/archive/master.zip"
    digest: str = ""
    root: str = "data/esc50"
    folds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Folds to test on, each after training on the others."""


@dataclass(frozen=True, kw_only=True)
class UrbanSound8KConfig(FoldsConfig):
    """All settings of the job. The default digest is Zenodo's, as soundata checks it; the licence is CC BY-NC."""

    num_folds = 10
    preset: tyro.conf.Suppress[str] = "urbansound8k"
    archive: str = "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz"
    digest: str = "9aa69802bbf37fb986f71ec1483a196e"
    root: str = "data/urbansound8k"
    folds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    """Folds to test on, each after training on the others."""


@dataclass(frozen=True, kw_only=True)
class SpeechCommandsConfig(PublishedConfig):
    """All settings of the job. The default digest is the one that torchaudio checks."""

    preset: tyro.conf.Suppress[str] = "speechcommands"
    archive: str = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
    digest: str = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
    root: str = "data/speechcommands"
    choose: Literal["best_on_valid", "last"] = "best_on_valid"
    """Epoch that is tested on the testing list."""


@dataclass(frozen=True, kw_only=True)
class FSD50KConfig(PublishedConfig):
    """All settings of the job. Zenodo holds the set as split zips, whose digests are those that soundata checks."""

    preset: tyro.conf.Suppress[str] = "fsd50k"
    archive: str = "https://zenodo.org/records/4060432/files"
    """Address below which the parts lie by their official names."""
    digest: tyro.conf.Suppress[str] = ""
    root: str = "data/fsd50k"
    choose: Literal["best_on_valid", "last"] = "best_on_valid"
    """Epoch that is tested on the evaluation set."""


@dataclass(frozen=True)
class VGGSoundConfig:
    """All settings of the job: AudioSet's, and a table in place of AudioSet's."""

    preset: tyro.conf.Suppress[str] = "vggsound"
    table: Annotated[str, Exists("download the official vggsound.csv, or leave --table out to fetch it")] = ""
    """The official vggsound.csv; empty to fetch it."""
    archive: str = "https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv"
    """Where the table is fetched from."""
    digest: str = ""
    """sha256 or md5 of the table; nothing is compared if empty. There is no official one."""
    root: str = "data/vggsound"
    """Folder or s3:// address of the store. A relative one is taken from the current folder, in a Ray job from
    ~/audioset-ast."""
    data: Data = field(default_factory=lambda: PreprocessConfig(splits=("train", "test")))
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=lambda: RayConfig("1", use_gpu=None))
    resume: str = ""
    """Run to go on with, on its own snapshot and by the same command otherwise; empty for a new one."""


@dataclass(frozen=True)
class FinetuneConfig:
    """All settings of the job. What is not set follows from the data."""

    preset: tyro.conf.Suppress[str] = "finetune"
    data: Input = ""
    """A table with the columns path,labels, or a folder that holds a folder of files for each class."""
    init: str = ""
    """Weights to start from: a checkpoint, a Hugging Face name, an official .pth, or DeiT's; empty for random ones."""
    size: Literal["nano", "tiny", "small", "base", "eat"] = "base"
    """Size of the model; that of an AST that is started from counts more. nano is for training without a GPU, eat
    for EAT's and SSLAM's weights."""
    head_only: Annotated[bool | None, tyro.conf.arg(metavar="| --no-head-only")] = None
    """Fit only the head, on embeddings that are computed once and kept: seconds instead of hours. Unset: without a
    GPU, or with fewer than 2,000 training clips, unless epochs, batch size or learning rate are set."""
    views: int = 1
    """Of each clip with --head-only: more than one adds augmented ones, which take as long to embed again."""
    shots: tuple[int, ...] = ()
    """With --head-only: also measure heads fitted to so many clips per class, such as 1 5 20."""
    root: str = "data/own"
    """Folder below which each set of sounds has a store of its own."""
    clip_s: float = 10.0
    """Longest clip; longer files are cut into several, which all have the file's labels."""
    eval_share: float = 0.2
    """Share of the files that is kept for measuring, if there are no splits."""
    num_epochs: int | None = None
    """Unless set: 5 for many clips, up to 40 for few."""
    batch_size: int | None = None
    """Samples per step. Unless set: 8 for few clips, up to 48 for many."""
    learning_rate: float | None = None
    """Unless set: 5e-5 from weights, 5e-4 from random ones."""
    mixup_probability: float = 0.5
    """Share of samples that are mixed with another."""
    seed: int = 0
    """Seed of splits, weights, draws and augmentation."""
    resume: str = ""
    """Run to go on with, by the same command otherwise; empty for a new one."""
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=lambda: RayConfig("1", use_gpu=None))

    def __post_init__(self) -> None:
        if not 0.1 <= self.clip_s <= 600:
            raise ConfigError(f"--clip-s must be between 0.1 and 600 s, found {self.clip_s}")
        if not 0 < self.eval_share < 1:
            raise ConfigError(f"--eval-share must be between 0 and 1, found {self.eval_share}")
        if self.views < 1 or min(self.shots, default=1) < 1:
            raise ConfigError(f"--views and --shots must be at least 1, found {self.views} and {self.shots}")
        if self.head_only and self.resume:
            raise ConfigError("--head-only has nothing to resume: leave --resume away; embeddings that are there stay")
