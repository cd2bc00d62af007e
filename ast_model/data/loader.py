"""Read batches of stored clips in the order of the draw plan. Threads prefetch them.

Axes: B clips, Q partners, T frames, M mel bins, S samples, C classes.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ast_model.config import CacheConfig, Features
from ast_model.data.sampling import CROP, NO_PARTNER, PARTNER_CROP, Draws
from pipeline.ahead import map_ahead
from pipeline.fbank_settings import FRAME_LENGTH, FRAME_SHIFT, NUM_MEL_BINS, num_frames_of
from pipeline.reading.cache import ShardCache
from pipeline.reading.prefetch import ShardPrefetcher
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot


@dataclass(frozen=True)
class Batch:
    """Stored clips, padded with 0 but not yet mixed or normalised."""

    features: Features
    num_frames: int
    """Number T of frames in the model's input."""
    rows: np.ndarray
    """Row (B,) of each clip in the snapshot's index."""
    clips: Tensor
    """Float16 log-mel (B, T, M), or int16 waveforms (B, S)."""
    lengths_B: Tensor
    """Lengths (B,) in frames or samples, without padding."""
    targets_BC: Tensor
    """Float32 targets, already mixed."""
    mixed: Tensor
    """Indices (Q,) into the batch of the clips that have a partner."""
    partners: Tensor
    """Partners (Q, …), in the format of `clips`."""
    partner_lengths_Q: Tensor
    lambda_Q: Tensor
    uniforms: Tensor
    """Random numbers (B, NUM_UNIFORMS) for the augmentation; (B, 0) without augmentation."""

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def pin(self) -> "Batch":
        """Return the batch in pinned memory, from which a GPU copies asynchronously."""
        return dataclasses.replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})

    def to(self, device: torch.device) -> "Batch":
        if self.clips.device == device:
            return self
        pinned = self.pin() if device.type == "cuda" else self
        moved = {name: value.to(device, non_blocking=True) for name, value in pinned.tensors().items()}
        return dataclasses.replace(self, **moved)


def without_augmentation(positions: np.ndarray) -> Draws:
    """Return draws of clips without partners and augmentation."""
    num_clips = len(positions)
    no_partners = np.full(num_clips, NO_PARTNER)
    return Draws(positions, no_partners, np.ones(num_clips, np.float32), np.empty((num_clips, 0), np.float32))


def open_reader(snapshot: Snapshot, cache: CacheConfig) -> ClipReader:
    """Open a reader of a snapshot's clips. Remote stores are read through the node's cache.

    Raises ConfigError if the cache can't be used.
    """
    if snapshot.store.is_local or not cache.folder:
        return ClipReader(snapshot)
    folder, max_bytes = Path(cache.folder).expanduser(), int(cache.max_gb * 1e9)
    shards = ShardCache(folder, max_bytes, snapshot.store, snapshot.checksums)
    return ClipReader(snapshot, ShardPrefetcher(shards, cache.num_threads))


class BatchReader:
    """Reads batches of clips with `num_frames` frames. Longer clips are cut and shorter clips padded with 0."""

    def __init__(
        self,
        reader: ClipReader,
        rows: np.ndarray,
        targets: sparse.csr_array,
        num_frames: int,
        features: Features = "fbank",
        random_crop: bool = False,
    ):
        """random_crop: cut a random segment out of longer clips, for draws that have random numbers."""
        self.reader = reader
        self.rows = rows
        self.targets = targets
        self._num_classes = cast(tuple[int, int], targets.shape)[1]
        self.num_frames = num_frames
        self.features: Features = features
        self.random_crop = random_crop

    def set_order(self, draws: Draws, is_grouped: bool) -> None:
        """Start prefetching shards of a remote store in the order of these draws."""
        if self.reader.prefetcher is None:
            return
        shards = self.reader.shards_of(self.rows[draws.clip])
        if is_grouped:
            order = shards[np.flatnonzero(np.diff(shards, prepend=-1))]
        else:
            # Treat clips without a partner as their own partner.
            partner = np.where(draws.partner == NO_PARTNER, draws.clip, draws.partner)
            both = np.stack([shards, self.reader.shards_of(self.rows[partner])], axis=1).ravel()
            order = both[np.sort(np.unique(both, return_index=True)[1])]
        self.reader.prefetcher.set_order([self.reader.shard_names[shard] for shard in order.tolist()], is_grouped)

    def prefetch(self, batches: Iterable[Draws], num_threads: int, pinned: bool = False) -> Iterator[Batch]:
        """Yield a batch for each group of draws, in order. Threads read ahead. pinned: use pinned memory, for a GPU."""

        def read(draws: Draws) -> Batch:
            batch = self.read_draws(draws, pinned)
            return batch.pin() if pinned else batch

        return map_ahead(read, self._advancing(batches), num_threads)

    def _advancing(self, batches: Iterable[Draws]) -> Iterator[Draws]:
        """Report progress to the cache, so that it can fetch the next shards and evict earlier shards."""
        for draws in batches:
            if self.reader.prefetcher is not None:
                shards = self.reader.shards_of(self.rows[draws.clip]).tolist()
                self.reader.prefetcher.advance_to(self.reader.shard_names[shard] for shard in shards)
            yield draws

    def read_clips(self, positions: np.ndarray) -> Batch:
        """Read clips without augmentation, by position."""
        return self.read_draws(without_augmentation(positions))

    def read_draws(self, draws: Draws, pinned: bool = False) -> Batch:
        """Read a batch of draws and their partners, optionally into pinned memory."""
        mixed = np.flatnonzero(draws.partner != NO_PARTNER)
        partner, lambda_Q = draws.partner[mixed], draws.mixup_lambda[mixed]
        rows = self.rows[draws.clip]
        crops_B = partner_crops_Q = None
        if self.random_crop and draws.uniforms.shape[1]:
            crops_B, partner_crops_Q = draws.uniforms[:, CROP], draws.uniforms[mixed, PARTNER_CROP]
        clips, lengths_B = self._read(rows, crops_B, pinned)
        partners, partner_lengths_Q = self._read(self.rows[partner], partner_crops_Q, pinned)
        targets_BC = self._targets(draws.clip)
        targets_BC[mixed] *= lambda_Q[:, None]
        targets_BC[mixed] += (1 - lambda_Q[:, None]) * self._targets(partner)
        return Batch(
            features=self.features,
            num_frames=self.num_frames,
            rows=rows,
            clips=clips,
            lengths_B=lengths_B,
            targets_BC=torch.from_numpy(targets_BC),
            mixed=torch.from_numpy(mixed),
            partners=partners,
            partner_lengths_Q=partner_lengths_Q,
            lambda_Q=torch.from_numpy(lambda_Q),
            uniforms=torch.from_numpy(draws.uniforms),
        )

    def _read(self, rows: np.ndarray, crops: np.ndarray | None, pinned: bool) -> tuple[Tensor, Tensor]:
        """Read clips from their start, or from the relative positions `crops` in [0, 1) if they are longer."""
        read = self._read_fbanks if self.features == "fbank" else self._read_waveforms
        return read(rows, crops, pinned)

    def _read_fbanks(self, rows: np.ndarray, crops: np.ndarray | None, pinned: bool) -> tuple[Tensor, Tensor]:
        # Allocate pinned memory at once, because pinning later would copy. torch reuses pinned memory for later
        # batches, which saves page faults.
        clips = torch.empty(len(rows), self.num_frames, NUM_MEL_BINS, dtype=torch.float16, pin_memory=pinned)
        fbank_BTM = clips.numpy()
        num_frames_B = np.empty(len(rows), np.int64)
        for position, row in enumerate(rows.tolist()):
            clip_TM = fbank_BTM[position]
            start = 0 if crops is None else self._start_of(int(self.reader.num_frames[row]), crops[position])
            num_frames_B[position] = num_read = self.reader.read_fbank(row, clip_TM, start)
            clip_TM[num_read:] = 0
        return clips, torch.from_numpy(num_frames_B)

    def _read_waveforms(self, rows: np.ndarray, crops: np.ndarray | None, pinned: bool) -> tuple[Tensor, Tensor]:
        waveforms = [self.reader.read_audio(row) for row in rows.tolist()]
        if crops is not None:
            waveforms = [self._crop(waveform, crop) for waveform, crop in zip(waveforms, crops, strict=True)]
        num_samples_B = np.array([len(waveform) for waveform in waveforms], np.int64)
        clips = torch.zeros(len(rows), int(num_samples_B.max(initial=0)), dtype=torch.int16, pin_memory=pinned)
        waveform_BS = clips.numpy()
        for position, waveform in enumerate(waveforms):
            waveform_BS[position, : len(waveform)] = waveform
        return clips, torch.from_numpy(num_samples_B)

    def _crop(self, waveform: np.ndarray, crop: float) -> np.ndarray:
        """Cut a waveform to the samples of the frames that `_read_fbanks` reads."""
        start = FRAME_SHIFT * self._start_of(num_frames_of(len(waveform)), crop)
        return waveform[start : start + FRAME_LENGTH + (self.num_frames - 1) * FRAME_SHIFT]

    def _start_of(self, num_frames: int, crop: float) -> int:
        """Return the first frame of a crop, uniform over all full windows; 0 for shorter clips."""
        return int(float(crop) * (max(num_frames - self.num_frames, 0) + 1))

    def _targets(self, positions: np.ndarray) -> np.ndarray:
        """Return multi-hot targets (B, C) float32. Five times as fast as indexing the sparse array."""
        starts, ends = self.targets.indptr[positions], self.targets.indptr[positions + 1]
        targets_BC = np.zeros((len(positions), self._num_classes), np.float32)
        for target_C, start, end in zip(targets_BC, starts.tolist(), ends.tolist(), strict=True):
            target_C[self.targets.indices[start:end]] = 1
        return targets_BC


def split_evenly(num_clips: int, rank: int, world_size: int, batch_size: int) -> list[np.ndarray]:
    """Split evaluation clips into one contiguous part per rank, and return the batches of one rank."""
    part = np.array_split(np.arange(num_clips), world_size)[rank]
    return [part[start : start + batch_size] for start in range(0, len(part), batch_size)]
