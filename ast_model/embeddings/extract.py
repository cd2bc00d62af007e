"""Compute the embeddings of clips, or spectral statistics without a model, and store them for heads and searches.

embeddings/{name}/
    model.safetensors    the embedding model with its config
    {digest}.parquet     shard, offset and embedding of a chunk's clips

`name` is a digest of the weights and the normalisation, or `statistics-` and a version. A clip is identified by its
place in an immutable shard, so snapshots with different splits, labels or selections share the stored values, and an
interrupted run computes only the missing clips.

Axes: N clips, B clips of a batch, T frames, M mel bins, D embedding size.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import.

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ast_model.config import CacheConfig
from ast_model.data.augment import Normalisation, prepare
from ast_model.data.loader import BatchReader, open_reader
from ast_model.distributed import World
from ast_model.embeddings.statistics import STATISTICS_VERSION, read_fbank, spectral_statistics
from ast_model.evaluation.evaluate import evaluation_mode
from ast_model.model import AST
from ast_model.pretrained.load import fit_weights
from ast_model.pretrained.weight_files import read_weights
from pipeline.errors import CorruptError
from pipeline.keys import positions_of
from pipeline.reading.reader import ClipReader
from pipeline.shards.format import digest_of
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.layout import EmbeddingFiles
from pipeline.store.storage import Store
from pipeline.store.tables import parquet_bytes, read_parquet

NUM_CHUNKS = 64
"""Target number of tasks per snapshot. `MIN_CHUNK_CLIPS` and `MAX_CHUNK_CLIPS` take precedence."""
MIN_CHUNK_CLIPS, MAX_CHUNK_CLIPS = 8, 1024
"""Limits on the clips per task and file. A killed worker loses at most one task."""
BATCH_CLIPS = {"cpu": 4, "cuda": 64}
"""Batch size per device type. CPU cores are fastest with batches that fit in their cache."""
PLACE = ["shard", "offset"]
"""Columns that identify a clip's fbank."""


@dataclass(frozen=True)
class EmbeddingPlan:
    """Small, picklable description that allows a worker to embed clips of a snapshot."""

    store: Store
    snapshot_id: str
    name: str
    normalisation: Normalisation | None
    """Normalisation of the model's input; None for spectral statistics."""

    @property
    def files(self) -> EmbeddingFiles:
        return EmbeddingFiles(self.name)


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


def plan_embeddings(snapshot: Snapshot, model: AST, normalisation: Normalisation) -> EmbeddingPlan:
    """Plan the embeddings of all clips of a snapshot."""
    made_of = {"weights": weights_digest(model), "normalisation": asdict(normalisation)}
    return EmbeddingPlan(snapshot.store, snapshot.snapshot_id, digest_of(made_of), normalisation)


def plan_statistics(snapshot: Snapshot) -> EmbeddingPlan:
    """Plan the spectral statistics of all clips of a snapshot."""
    return EmbeddingPlan(snapshot.store, snapshot.snapshot_id, f"statistics-{STATISTICS_VERSION}", None)


def find_missing(plan: EmbeddingPlan, snapshot: Snapshot) -> list[np.ndarray]:
    """Return the rows of the snapshot's clips without stored embeddings, in chunks."""
    rows = np.flatnonzero(_positions(snapshot, _read_files(plan, PLACE)) < 0)
    chunk_clips = min(MAX_CHUNK_CLIPS, max(MIN_CHUNK_CLIPS, len(rows) // NUM_CHUNKS))
    return [rows[start : start + chunk_clips] for start in range(0, len(rows), chunk_clips)]


def embed_chunk(rows: np.ndarray, plan: EmbeddingPlan, device: torch.device | None = None) -> float:
    """Embed clips of the plan's snapshot and publish the values. Returns the elapsed seconds. Idempotent."""
    snapshot = _open_snapshot(plan)
    if plan.normalisation:
        _open_model(plan, device or torch.device("cpu"))  # load first, so that loading does not count
    started_s = time.monotonic()
    if plan.normalisation:
        values_ND = _embed(rows, plan, plan.normalisation, device or torch.device("cpu"))
    else:
        reader = ClipReader(snapshot)
        values_ND = np.stack([spectral_statistics(read_fbank(reader, snapshot, row)) for row in rows.tolist()])
    _write_file(plan, snapshot.index.select(PLACE).take(pa.array(rows)), values_ND.astype(np.float32))
    return time.monotonic() - started_s


def _embed(rows: np.ndarray, plan: EmbeddingPlan, norm: Normalisation, device: torch.device) -> np.ndarray:
    model, reader = _open_model(plan, device)
    parts = []
    # Use the precision of evaluations, which is float32 on a CPU.
    with evaluation_mode(model), World(0, 1, device).autocast("auto"):
        for start in range(0, len(rows), BATCH_CLIPS[device.type]):
            fbank_BTM = reader.read_clips(rows[start : start + BATCH_CLIPS[device.type]]).to(device)
            parts.append(model.embed(prepare(fbank_BTM, norm.mean, norm.std)).float().cpu().numpy())
    return np.concatenate(parts)


def _write_file(plan: EmbeddingPlan, places: pa.Table, embeddings_ND: np.ndarray) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings_ND.ravel()), embeddings_ND.shape[1])
    name = digest_of(places.to_pylist())
    plan.store.write_bytes(plan.files.chunk(name), parquet_bytes(places.append_column("embedding", values)))


@cache
def _open_snapshot(plan: EmbeddingPlan) -> Snapshot:
    return load_snapshot(plan.store, plan.snapshot_id)


@cache
def _open_model(plan: EmbeddingPlan, device: torch.device) -> tuple[AST, BatchReader]:
    """Load the model and open the clips, once per process."""
    snapshot, address = _open_snapshot(plan), plan.store.url(plan.files.model)
    model = fit_weights(read_weights(address), address).to(device)
    rows = np.arange(len(snapshot.index))
    reader = BatchReader(open_reader(snapshot, CacheConfig()), rows, snapshot.targets(rows), model.config.num_frames)
    return model, reader


def read_embeddings(plan: EmbeddingPlan, snapshot: Snapshot) -> np.ndarray:
    """Read the embeddings (N, D) of a snapshot's clips. Raises CorruptError if files are missing or damaged."""
    stored = _read_files(plan, [*PLACE, "embedding"])
    positions = _positions(snapshot, stored)
    if num_missing := np.count_nonzero(positions < 0):
        raise CorruptError(
            f"expected embeddings of {len(positions)} clips in {plan.store.url(plan.files.folder)}, {num_missing} are"
            " missing; run again"
        )
    values = stored["embedding"].combine_chunks()
    return values.flatten().to_numpy().reshape(len(stored), -1)[positions]


def _positions(snapshot: Snapshot, stored: pa.Table) -> np.ndarray:
    """Return the stored row of each clip of a snapshot (N,), or -1 if it is missing."""
    return positions_of(_places(snapshot.index), _places(stored))


def _places(table: pa.Table) -> pa.ChunkedArray:
    shard, offset = (table[name].cast(pa.string()) for name in PLACE)
    return pc.binary_join_element_wise(shard, offset, "@")


def _read_files(plan: EmbeddingPlan, columns: Sequence[str]) -> pa.Table:
    """Read columns of all stored embeddings."""
    size = pa.list_(pa.float32(), 0)
    empty = pa.schema([("shard", pa.string()), ("offset", pa.int64()), ("embedding", size)]).empty_table()
    tables = []
    for name in plan.store.list(plan.files.folder, ".parquet"):
        try:
            tables.append(read_parquet(plan.store.read_bytes(name), columns))
        except (pa.ArrowException, OSError, KeyError) as error:
            address = plan.store.url(name)
            raise CorruptError(f"{address} is damaged ({error}); remove it and run again") from error
    return pa.concat_tables(tables) if tables else empty.select(columns)
