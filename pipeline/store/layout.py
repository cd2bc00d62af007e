"""All paths in a store, relative to its root.

No other module spells out these paths. ARCHITECTURE.md describes the same tree.
"""

from dataclasses import dataclass

METADATA = "metadata"
SHARDS = "shards"
MEASURES = "quality"
JOURNALS = "parts"
LISTINGS = "listings"
LEASES = "lease"
SNAPSHOTS = "snapshots"
LATEST = "latest.json"
EMBEDDINGS = "embeddings"
TEACHERS = "teachers"
RUNS = "runs"
EVALUATIONS = "evaluations"
COMPILED = "compiled"
MINIATURE = "miniature"
MINIATURE_MEDIA = f"{MINIATURE}/media"
MLFLOW_DATABASE = "mlflow.db"
MLFLOW_ARTIFACTS = "mlartifacts"
SCRATCH = ".scratch"

CLASSES_FILE = "class_labels_indices.csv"
SEGMENTS_SUFFIX = "_segments.csv"
TAR, SIDECAR = ".tar", ".parquet"
MANIFEST = "manifest.json"
RUN_RECORD = "run.json"
FOLDS_RECORD = "folds.json"
TEACHER_RECORD = "teacher.json"

CLASSES = f"{METADATA}/{CLASSES_FILE}"


def segments_file(split: str) -> str:
    return f"{METADATA}/{split}{SEGMENTS_SUFFIX}"


def listing(digest: str) -> str:
    return f"{LISTINGS}/{digest}.parquet"


def compiled_code(key: str) -> str:
    return f"{COMPILED}/{key}.tar.gz"


def lease(number: int) -> str:
    return f"{LEASES}/{number:08d}.json"


@dataclass(frozen=True, order=True, slots=True)
class Shard:
    """The files of one shard, which contains clips of one split."""

    split: str
    shard_id: str

    @classmethod
    def of(cls, path: str) -> "Shard":
        """Return the shard that a tar or a sidecar belongs to."""
        split, _, file = path.removeprefix(f"{SHARDS}/").rpartition("/")
        return cls(split, file.removesuffix(TAR).removesuffix(SIDECAR))

    def __str__(self) -> str:
        return f"{SHARDS}/{self.split}/{self.shard_id}"

    @property
    def tar(self) -> str:
        return f"{self}{TAR}"

    @property
    def sidecar(self) -> str:
        return f"{self}{SIDECAR}"

    @property
    def measures(self) -> str:
        return f"{MEASURES}/{self.split}/{self.shard_id}.parquet"

    def journal(self, fingerprint: str) -> str:
        """Return the folder of the shard's journal, which exists until the shard is finished."""
        return f"{JOURNALS}/{fingerprint}/{self.split}/{self.shard_id}"


@dataclass(frozen=True, slots=True)
class SnapshotFiles:
    """The files of one snapshot."""

    snapshot_id: str

    @property
    def folder(self) -> str:
        return f"{SNAPSHOTS}/{self.snapshot_id}"

    @property
    def index(self) -> str:
        return f"{self.folder}/index.parquet"

    @property
    def labels(self) -> str:
        return f"{self.folder}/labels.csv"

    @property
    def shards(self) -> str:
        return f"{self.folder}/shards.parquet"

    @property
    def stats(self) -> str:
        return f"{self.folder}/stats.json"

    @property
    def manifest(self) -> str:
        return f"{self.folder}/{MANIFEST}"

    @property
    def duplicates(self) -> str:
        return f"{self.folder}/duplicates.parquet"

    def selection(self, digest: str) -> str:
        return f"{self.folder}/selections/{digest}.parquet"


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of one training run."""

    run: str

    @property
    def folder(self) -> str:
        return f"{RUNS}/{self.run}"

    @property
    def record(self) -> str:
        return f"{self.folder}/{RUN_RECORD}"

    @property
    def folds(self) -> str:
        return f"{self.folder}/{FOLDS_RECORD}"

    @property
    def history(self) -> str:
        return f"{self.folder}/history.json"

    @property
    def checkpoints(self) -> str:
        return f"{self.folder}/checkpoints"

    @property
    def average(self) -> str:
        return f"{self.folder}/average"

    def evaluation(self, variant: str) -> str:
        return f"{self.folder}/evaluations/{variant}.npz"


@dataclass(frozen=True, slots=True)
class TeacherFiles:
    """The files of one teacher."""

    name: str

    @property
    def folder(self) -> str:
        return f"{TEACHERS}/{self.name}"

    @property
    def scores(self) -> str:
        return f"{self.folder}/scores.npy"

    @property
    def keys(self) -> str:
        return f"{self.folder}/keys.parquet"

    @property
    def record(self) -> str:
        return f"{self.folder}/{TEACHER_RECORD}"

    def member(self, plan: str, number: int) -> str:
        """Return the weights of a model that scores clips for the teacher."""
        return f"{self.parts(plan)}/model-{number}.safetensors"

    def part(self, plan: str, first: int) -> str:
        """Return the path of a chunk of scores, which exists until the teacher is complete. first: its first clip."""
        return f"{self.parts(plan)}/{first:09d}.npy"

    def parts(self, plan: str) -> str:
        return f"{self.folder}/parts/{plan}"


@dataclass(frozen=True, slots=True)
class EmbeddingFiles:
    """The files of all embeddings that one model computed."""

    name: str

    @property
    def folder(self) -> str:
        return f"{EMBEDDINGS}/{self.name}"

    @property
    def model(self) -> str:
        return f"{self.folder}/model.safetensors"

    def chunk(self, digest: str) -> str:
        """Return the path of the embeddings of some clips. `digest` is the digest of the clips' places in shards."""
        return f"{self.folder}/{digest}.parquet"


def name_in(folder: str, path: str) -> str:
    """Return the first component of a path below a folder, such as the name of a run or a snapshot id."""
    return path.removeprefix(f"{folder}/").split("/")[0]
