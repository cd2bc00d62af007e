"""Clips from the store as batches, read ahead by threads, in exactly the order of the draw plan."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ast_model.draws import NO_PARTNER, Draws
from pipeline.errors import CorruptError
from pipeline.fbank import NUM_MEL_BINS
from pipeline.shards import parse_fbank
from pipeline.snapshot import Snapshot

MAX_OPEN_SHARDS = 256
PREFETCH_PER_THREAD = 2
Work = TypeVar("Work")


@dataclass(frozen=True)
class Batch:
    """Clips as they lie in the store, padded with 0, not normalised.

    Letters: B clips, Q partners, T frames, M mel bins, C classes.
    """

    rows: np.ndarray
    """(B,) rows of the snapshot's index."""
    fbank_BTM: Tensor
    """float16."""
    num_frames_B: Tensor
    targets_BC: Tensor
    """float32, mixed where the clip is."""
    mixed: Tensor
    """(Q,) places in the batch that have a partner."""
    partner_QTM: Tensor
    """float16."""
    partner_frames_Q: Tensor
    lam_Q: Tensor
    uniforms: Tensor
    """(B, NUM_UNIFORMS), for the augmentation; (B, 0) without one."""

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        moved = {
            name: value.pin_memory().to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)


class ClipReader:
    """Reads single clips of a snapshot by (shard, offset, length). Safe to use from several threads."""

    def __init__(self, snapshot: Snapshot):
        index = snapshot.index
        self.store = snapshot.store
        self._shard_names = index["shard"].combine_chunks().dictionary.to_pylist()
        self._shard = index["shard"].combine_chunks().indices.to_numpy()
        self._offset = index["offset"].to_numpy()
        self._length = index["length"].to_numpy()
        self.num_frames = index["num_frames"].to_numpy()
        self._open = lru_cache(MAX_OPEN_SHARDS)(_LocalShard)

    def read(self, row: int) -> np.ndarray:
        """Return the clip's fbank (T, 128) float16. Raises CorruptError if the shard is not the one indexed."""
        name = self._shard_names[self._shard[row]]
        offset, length = int(self._offset[row]), int(self._length[row])
        if self.store.is_local:
            member = self._open(self.store.path(name)).read(offset, length)
        else:
            member = self.store.read_range(name, offset, length)
        try:
            return parse_fbank(member, int(self.num_frames[row]))
        except CorruptError as error:
            raise CorruptError(f"{self.store.url(name)} at byte {offset}: {error}") from error


class _LocalShard:
    """An open tar; it is closed when no reader holds it any more."""

    def __init__(self, path: str):
        try:
            self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError as error:
            raise CorruptError(
                f"the shard {path} is in the snapshot but not on disk; restore it or preprocess"
            ) from error

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class Collator:
    """Makes batches of `num_frames` frames: longer clips are cut, shorter ones padded with 0."""

    def __init__(self, reader: ClipReader, rows: np.ndarray, targets: sparse.csr_array, num_frames: int):
        self.reader = reader
        self.rows = rows
        self.targets = targets
        self.num_frames = num_frames

    def plain(self, positions: np.ndarray) -> Batch:
        """Batch of clips as they are, for evaluation."""
        num_clips = len(positions)
        nobody = np.full(num_clips, NO_PARTNER)
        return self.drawn(
            Draws(positions, nobody, np.ones(num_clips, np.float32), np.empty((num_clips, 0), np.float32))
        )

    def drawn(self, draws: Draws) -> Batch:
        """Batch of draws, with the partners to mix in."""
        mixed = np.flatnonzero(draws.partner != NO_PARTNER)
        partners, lam_Q = draws.partner[mixed], draws.lam[mixed]
        fbank_BTM, num_frames_B = self._stack(self.rows[draws.clip])
        partner_QTM, partner_frames_Q = self._stack(self.rows[partners])
        targets_BC = self.targets[draws.clip].toarray().astype(np.float32)
        targets_BC[mixed] *= lam_Q[:, None]
        targets_BC[mixed] += (1 - lam_Q[:, None]) * self.targets[partners].toarray()
        return Batch(
            rows=self.rows[draws.clip],
            fbank_BTM=fbank_BTM,
            num_frames_B=num_frames_B,
            targets_BC=torch.from_numpy(targets_BC),
            mixed=torch.from_numpy(mixed),
            partner_QTM=partner_QTM,
            partner_frames_Q=partner_frames_Q,
            lam_Q=torch.from_numpy(lam_Q),
            uniforms=torch.from_numpy(draws.uniforms),
        )

    def _stack(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        fbank_BTM = np.zeros((len(rows), self.num_frames, NUM_MEL_BINS), np.float16)
        for place, row in enumerate(rows):
            clip_TM = self.reader.read(int(row))[: self.num_frames]
            fbank_BTM[place, : len(clip_TM)] = clip_TM
        num_frames_B = np.minimum(self.reader.num_frames[rows], self.num_frames).astype(np.int64)
        return torch.from_numpy(fbank_BTM), torch.from_numpy(num_frames_B)


def read_ahead(make: Callable[[Work], Batch], works: Iterable[Work], num_threads: int) -> Iterator[Batch]:
    """Yield `make(work)` for each work, in order, made ahead by threads; memory holds a bounded number."""
    with ThreadPoolExecutor(num_threads) as pool:
        window: deque[Future[Batch]] = deque()
        try:
            for work in works:
                window.append(pool.submit(make, work))
                if len(window) > num_threads * PREFETCH_PER_THREAD:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()


def split_evenly(num_clips: int, rank: int, world_size: int, batch_size: int) -> list[np.ndarray]:
    """Return a rank's batches of an evaluation: a contiguous part, so that all ranks see each clip once, in order."""
    part = np.array_split(np.arange(num_clips), world_size)[rank]
    return [part[start : start + batch_size] for start in range(0, len(part), batch_size)]
