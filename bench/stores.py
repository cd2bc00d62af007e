"""Synthetic stores for benchmarks, shaped like AudioSet: fbanks of ten seconds of noise."""

import io
import tarfile
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np
import torch

from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import SAMPLE_RATE_HZ
from pipeline.labels import Labels
from pipeline.metadata import Metadata
from pipeline.records import Segment
from pipeline.segments import table_of
from pipeline.shards.checksum import checksum_of
from pipeline.shards.format import (
    WRITTEN,
    ShardWriter,
    SidecarRow,
    shard_fingerprint,
    write_sidecar,
)
from pipeline.snapshots.build import build_snapshot
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store

NUM_CLASSES = 527
CLIP_S = 10


def make_store(store: Store, num_shards: int, clips_per_shard: int, keep_audio: bool = False) -> Snapshot:
    """Write shards of noise with up to two labels per clip; return their snapshot."""
    labels = Labels(
        tuple(f"/m/{index}" for index in range(NUM_CLASSES)), tuple(f"Class {index}" for index in range(NUM_CLASSES))
    )
    random = np.random.default_rng(0)
    waveform = (random.standard_normal(CLIP_S * SAMPLE_RATE_HZ) * 0.1).clip(-1, 1).astype(np.float32)
    fbank_TM = compute_fbank(torch.from_numpy(waveform)).numpy()
    audio = _encode(waveform) if keep_audio else None
    clips: list[Segment] = []
    for shard in range(num_shards):
        mids = random.choice(labels.mids, (clips_per_shard, 2))
        segments = [
            Segment(f"{shard:04}_{place:06}", 0, CLIP_S * 1000, tuple(sorted(set(pair))), "balanced_train")
            for place, pair in enumerate(mids.tolist())
        ]
        _write_shard(store, f"{shard:04}", segments, fbank_TM, audio)
        clips += segments
    return build_snapshot(store, Metadata(labels, table_of(clips), digest=""), keep_audio)


class PlainTarWriter:
    """Replacement for webdataset's `TarWriter`, so that `make gpu` runs without webdataset."""

    def __init__(self, stream: BinaryIO, mtime: int):
        self.tarstream, self._mtime = tarfile.TarFile(fileobj=stream, mode="w"), mtime

    def write(self, sample: dict[str, Any]) -> None:
        key = sample.pop("__key__")
        for extension, content in sample.items():
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size, member.mtime = len(content), self._mtime
            self.tarstream.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        self.tarstream.close()


def _encode(waveform: np.ndarray) -> bytes:
    from pipeline.audio.decode import encode_flac  # imported here because stores without audio work without PyAV

    return encode_flac(waveform)


def _write_shard(
    store: Store, shard_id: str, segments: list[Segment], fbank_TM: np.ndarray, audio: bytes | None
) -> None:
    with store.scratch() as folder:
        writer = ShardWriter(folder / "shard.tar", None if find_spec("webdataset") else PlainTarWriter)
        rows = [
            SidecarRow(
                key=segment.key,
                ytid=segment.ytid,
                start_ms=segment.start_ms,
                end_ms=segment.end_ms,
                split=segment.split,
                labels=segment.labels,
                status=WRITTEN,
                **writer.write(segment, fbank_TM, audio, "noise"),
            )
            for segment in segments
        ]
        writer.close()
        split, fingerprint = segments[0].split, shard_fingerprint(audio is not None)
        checksum = checksum_of(folder / "shard.tar")
        store.publish(folder / "shard.tar", Shard(split, shard_id).tar)
        write_sidecar(store, Shard(split, shard_id).sidecar, rows, fingerprint, checksum)
