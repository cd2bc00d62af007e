"""Compute the embeddings of a snapshot's clips once per model, and store them for heads and searches.

embeddings/{name}/
    model.safetensors       the embedding model with its config and normalisation
    {first row}.npy         float32 (rows, views, D) of consecutive rows of the snapshot's index

`name` is a digest of the snapshot, weights, normalisation and views. A second head on the same sounds reads the stored
values, and an interrupted run computes only missing chunks.

Axes: N clips, V views, B clips of a batch, T frames, M mel bins, D embedding size.
"""

import hashlib
import io
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import torch

from ast_model.config import AugmentConfig, CacheConfig
from ast_model.data.augment import Normalisation, augment, prepare
from ast_model.data.loader import BatchReader, open_reader
from ast_model.data.sampling import NO_PARTNER, NUM_UNIFORMS, Draws
from ast_model.distributed import World
from ast_model.evaluation.evaluate import evaluation_mode
from ast_model.model import AST
from ast_model.pretrained.load import fit_weights
from ast_model.pretrained.weight_files import read_weights
from pipeline.errors import CorruptError
from pipeline.shards.format import digest_of
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.layout import EmbeddingFiles
from pipeline.store.storage import Store

NUM_CHUNKS = 64
"""Target number of tasks per snapshot. `MIN_CHUNK_CLIPS` and `MAX_CHUNK_CLIPS` take precedence."""
MIN_CHUNK_CLIPS, MAX_CHUNK_CLIPS = 8, 1024
"""Limits on the clips per task and file. A killed worker loses at most one task."""
BATCH_CLIPS = {"cpu": 4, "cuda": 64}
"""Batch size per device type. CPU cores are fastest with batches that fit in their cache."""
VIEW_AUGMENT = AugmentConfig(
    mixup_probability=0.0, max_freq_mask_bins=24, max_time_mask_frames=48, noise=True, max_roll_frames=10
)
"""Augmentation of all views after the first. Excludes mixup, because a view keeps the labels of its clip."""


@dataclass(frozen=True)
class EmbeddingPlan:
    """Small, picklable description that allows a worker to embed any chunk."""

    store: Store
    snapshot_id: str
    name: str
    num_clips: int
    num_views: int
    normalisation: Normalisation

    @property
    def files(self) -> EmbeddingFiles:
        return EmbeddingFiles(self.name)

    @property
    def chunk_clips(self) -> int:
        return min(MAX_CHUNK_CLIPS, max(MIN_CHUNK_CLIPS, self.num_clips // NUM_CHUNKS))

    @property
    def chunks(self) -> list[int]:
        """First row of each chunk."""
        return list(range(0, self.num_clips, self.chunk_clips))

    def rows_of(self, first: int) -> np.ndarray:
        """Rows of the chunk that starts at `first`."""
        return np.arange(first, min(first + self.chunk_clips, self.num_clips))

    def missing_chunks(self) -> list[int]:
        there = set(self.store.list(self.files.folder, ".npy"))
        return [first for first in self.chunks if self.files.chunk(first) not in there]


def weights_digest(model: AST) -> str:
    """Return a digest of all weights except the head's, which does not affect embeddings."""
    digest = hashlib.sha256(
        repr(sorted(asdict(model.config).items() - {("num_classes", model.config.num_classes)})).encode()
    )
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith("head."):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def plan_embeddings(snapshot: Snapshot, model: AST, normalisation: Normalisation, num_views: int = 1) -> EmbeddingPlan:
    """Plan the embeddings of all clips of a snapshot.

    num_views: views per clip. The first view is the unchanged clip; further views are augmented.
    """
    made_of = {
        "snapshot": snapshot.snapshot_id,
        "weights": weights_digest(model),
        "normalisation": asdict(normalisation),
        "num_views": num_views,
        "views": asdict(VIEW_AUGMENT) if num_views > 1 else None,
    }
    num_clips = len(snapshot.index)
    return EmbeddingPlan(snapshot.store, snapshot.snapshot_id, digest_of(made_of), num_clips, num_views, normalisation)


def embed_chunk(first: int, plan: EmbeddingPlan, device: torch.device | None = None) -> float:
    """Embed the clips of a chunk and publish them; return the elapsed seconds. Idempotent."""
    device = device or torch.device("cpu")
    model, reader = _open(plan, device)
    started_s = time.monotonic()
    rows = plan.rows_of(first)
    parts = []
    # Use the precision of evaluations, which is float32 on a CPU.
    with evaluation_mode(model), World(0, 1, device).autocast("auto"):
        for start in range(0, len(rows), BATCH_CLIPS[device.type]):
            positions = rows[start : start + BATCH_CLIPS[device.type]]
            views = [model.embed(fbank_BTM) for fbank_BTM in _views(reader, positions, plan, device)]
            parts.append(torch.stack(views, dim=1).float().cpu().numpy())
    out = io.BytesIO()
    np.save(out, np.concatenate(parts), allow_pickle=False)
    plan.store.write_bytes(plan.files.chunk(first), out.getvalue())
    return time.monotonic() - started_s


def _views(
    reader: BatchReader, positions: np.ndarray, plan: EmbeddingPlan, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield batches of model inputs (B, T, M): unchanged clips first, then augmented views."""
    norm = plan.normalisation
    yield prepare(reader.read_clips(positions).to(device), norm.mean, norm.std)
    nobody, whole = np.full(len(positions), NO_PARTNER), np.ones(len(positions), np.float32)
    for view in range(1, plan.num_views):
        # Seed each clip separately, so that recomputed chunks have the same bytes.
        uniforms = [np.random.default_rng((view, position)).random(NUM_UNIFORMS) for position in positions.tolist()]
        draws = Draws(positions, nobody, whole, np.asarray(uniforms, np.float32))
        yield augment(reader.read_draws(draws).to(device), VIEW_AUGMENT, norm.mean, norm.std)


@cache
def _open(plan: EmbeddingPlan, device: torch.device) -> tuple[AST, BatchReader]:
    """Load the model and open the clips, once per process."""
    snapshot = load_snapshot(plan.store, plan.snapshot_id)
    address = plan.store.url(plan.files.model)
    model = fit_weights(read_weights(address), address).to(device)
    rows = np.arange(plan.num_clips)
    reader = BatchReader(open_reader(snapshot, CacheConfig()), rows, snapshot.targets(rows), model.config.num_frames)
    return model, reader


def read_embeddings(plan: EmbeddingPlan) -> np.ndarray:
    """Read all embeddings (N, V, D). Raises CorruptError if chunks are missing or cut short."""
    if missing := plan.missing_chunks():
        raise CorruptError(
            f"expected {len(plan.chunks)} chunks in {plan.store.url(plan.files.folder)}, but {len(missing)} are missing"
        )
    parts = []
    for first in plan.chunks:
        name = plan.files.chunk(first)
        try:
            part = np.load(io.BytesIO(plan.store.read_bytes(name)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise CorruptError(f"{plan.store.url(name)} is damaged ({error}); remove it and run again") from error
        parts.append(part)
    found = np.concatenate(parts)
    if found.shape[:2] != (plan.num_clips, plan.num_views):
        raise CorruptError(
            f"expected embeddings of {plan.num_clips} clips in {plan.num_views} views in"
            f" {plan.store.url(plan.files.folder)}, found {found.shape}; remove the folder and run again"
        )
    return found
