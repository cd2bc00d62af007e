"""Score clips with several models, chunk by chunk. The teacher is the mean of their scores.

teachers/{name}/parts/{plan}/model-{number}.safetensors    a model with its classes in the snapshot's order
teachers/{name}/parts/{plan}/{first}.npy                   mean scores of a chunk (n, C) float32; NaN if not finite

`plan` is a digest of the snapshot, the splits and the models, so that an interrupted run computes only missing chunks.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import torch

from ast_model.config import CacheConfig
from ast_model.data.augment import Normalisation
from ast_model.data.loader import BatchReader, open_reader
from ast_model.distributed import World
from ast_model.evaluation.evaluate import score_clips
from ast_model.model import AST
from ast_model.pretrained.load import fit_weights
from ast_model.pretrained.metadata import ModelMetadata, read_metadata
from ast_model.pretrained.weight_files import read_weights
from pipeline.errors import CorruptError
from pipeline.reading.reader import ClipReader
from pipeline.shards.format import digest_of
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.layout import TeacherFiles
from pipeline.store.storage import Store

NUM_CHUNKS, MIN_CHUNK_CLIPS, MAX_CHUNK_CLIPS = 64, 8, 1024
"""Target number of tasks, and limits on the clips per task. A killed worker loses at most one task."""


@dataclass(frozen=True)
class ScoringPlan:
    """Small, picklable description that allows a worker to score any chunk."""

    store: Store
    snapshot_id: str
    splits: tuple[str, ...]
    teacher: str
    plan_id: str
    num_models: int
    num_clips: int
    batch_size: int

    @property
    def files(self) -> TeacherFiles:
        return TeacherFiles(self.teacher)

    @property
    def chunk_clips(self) -> int:
        return min(MAX_CHUNK_CLIPS, max(MIN_CHUNK_CLIPS, self.num_clips // NUM_CHUNKS))

    @property
    def chunks(self) -> list[int]:
        """Number of the first clip of each chunk."""
        return list(range(0, self.num_clips, self.chunk_clips))

    def size_of(self, first: int) -> int:
        return min(self.chunk_clips, self.num_clips - first)

    def missing_chunks(self) -> list[int]:
        there = set(self.store.list(self.files.parts(self.plan_id), ".npy"))
        return [first for first in self.chunks if self.files.part(self.plan_id, first) not in there]


def plan_scoring(
    snapshot: Snapshot,
    splits: tuple[str, ...],
    teacher: str,
    models: Sequence[tuple[AST, ModelMetadata]],
    batch_size: int,
) -> ScoringPlan:
    """Plan to score all clips of the splits. models: models with their classes in the snapshot's order."""
    digest = digest_of([snapshot.snapshot_id, list(splits), [_digest_of_model(*each) for each in models]])
    num_clips = len(snapshot.rows_of(splits))
    place = (snapshot.store, snapshot.snapshot_id, splits, teacher, digest)
    return ScoringPlan(*place, len(models), num_clips, batch_size)


def _digest_of_model(model: AST, metadata: ModelMetadata) -> str:
    """Digest weights and metadata instead of the file, because safetensors writes its header in any order."""
    digest = hashlib.sha256(repr((asdict(model.config), metadata.mean, metadata.std, metadata.loss)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def score_chunk(first: int, plan: ScoringPlan, device: torch.device | None = None) -> int:
    """Score the clips of a chunk with all models, and publish the mean. Returns the number of clips. Idempotent."""
    device = device or torch.device("cpu")
    mean = np.zeros((plan.size_of(first), 0), np.float32)
    for number in range(plan.num_models):
        model, metadata, clips = _open(plan, number, first, device)
        norm = Normalisation(metadata.mean, metadata.std)
        scores = score_clips(model, clips, World(0, 1, device), norm, plan.batch_size, metadata.loss)
        mean = scores if not number else mean + (scores - mean) / (number + 1)
    mean[~np.isfinite(mean).all(axis=1)] = np.nan
    out = io.BytesIO()
    np.save(out, mean.astype(np.float32), allow_pickle=False)
    plan.store.write_bytes(plan.files.part(plan.plan_id, first), out.getvalue())
    return len(mean)


def _open(plan: ScoringPlan, number: int, first: int, device: torch.device) -> tuple[AST, ModelMetadata, BatchReader]:
    model, metadata = _open_model(plan, number, device)
    snapshot, reader, rows = _open_clips(plan)
    chunk = rows[first : first + plan.size_of(first)]
    return model, metadata, BatchReader(reader, chunk, snapshot.targets(chunk), model.config.num_frames)


@cache
def _open_model(plan: ScoringPlan, number: int, device: torch.device) -> tuple[AST, ModelMetadata]:
    """Load a model, once per process."""
    address = plan.store.url(plan.files.member(plan.plan_id, number))
    file = read_weights(address)
    model = fit_weights(file, address)
    return model.to(device), read_metadata(file, model.config)


@cache
def _open_clips(plan: ScoringPlan) -> tuple[Snapshot, ClipReader, np.ndarray]:
    """Open the clips, once per process."""
    snapshot = load_snapshot(plan.store, plan.snapshot_id)
    return snapshot, open_reader(snapshot, CacheConfig()), snapshot.rows_of(plan.splits)


def read_parts(plan: ScoringPlan) -> Iterator[np.ndarray]:
    """Yield the scores (n, C) of all chunks in order. Raises CorruptError for a damaged chunk."""
    for first in plan.chunks:
        name = plan.files.part(plan.plan_id, first)
        try:
            part = np.load(io.BytesIO(plan.store.read_bytes(name)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise CorruptError(f"{plan.store.url(name)} is damaged ({error}); remove it and run again") from error
        if part.ndim != 2 or len(part) != plan.size_of(first):
            raise CorruptError(f"{plan.store.url(name)} has {part.shape}; remove it and run again")
        yield part


def remove_parts(plan: ScoringPlan) -> None:
    """Remove the chunks and models of a complete teacher."""
    plan.store.remove(plan.files.parts(plan.plan_id))
