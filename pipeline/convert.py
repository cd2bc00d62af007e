"""Convert a shard plan to a shard with measures and a sidecar."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from pipeline.audio.decode import decode_segment, encode_flac
from pipeline.config import FetchConfig
from pipeline.errors import AudioTaggingError, StoreError, is_disk_full
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.measures.clip_measures import Measures
from pipeline.measures.table import write_measures
from pipeline.records import CLIPS_PER_PART, Failure, Media, Reason, Segment, ShardPlan, ShardReport
from pipeline.shards.checksum import checksum_of
from pipeline.shards.format import (
    FAILED,
    FBANK_DTYPE,
    WRITTEN,
    ShardWriter,
    SidecarRow,
    digest_of,
    read_sidecar,
    shard_fingerprint,
    write_sidecar,
)
from pipeline.shards.journal import ClipResult, Journal
from pipeline.sources import Source
from pipeline.sources.fetch import OUTAGE_REASONS, Fetcher, fetch_ahead
from pipeline.sources.rate_limit import MAX_FAILURES_IN_A_ROW, LocalRateLimiter, RateLimiter, Wait
from pipeline.store.layout import Shard
from pipeline.store.lock import LeaseGuard
from pipeline.store.storage import Store

SHORT = "short"
"""Detail of a written clip whose media ended before its segment."""


@dataclass(frozen=True)
class Conversion:
    """The objects and settings that workers need to convert shard plans to shards."""

    store: Store
    source: Source
    fetch: FetchConfig
    keep_audio: bool
    limiter: RateLimiter = field(default_factory=LocalRateLimiter)
    lease: LeaseGuard | None = None
    """The run's lease of the store. Tasks check it before they write."""

    @property
    def fingerprint(self) -> str:
        return shard_fingerprint(self.keep_audio)

    @property
    def fetcher(self) -> Fetcher:
        return Fetcher(self.source, self.fetch, self.limiter)

    def journal(self, shard: Shard) -> Journal:
        return Journal(self.store, self.fingerprint, shard, self.lease)

    def check_lease(self) -> None:
        """Raise LeaseError if another run has taken over the store."""
        if self.lease:
            self.lease.check()


def convert_shard(plan: ShardPlan, conversion: Conversion) -> ShardReport | Wait:
    """Fetch and convert a plan's segments and publish the shard, unless it already exists.

    An unavailable clip becomes a failed row. If no clip is available, the shard consists of its sidecar only. If an
    earlier attempt was killed, the conversion resumes from its journal. Returns a Wait if all addresses are cooling
    down; the finished clips are then in the journal. Raises StoreError if the shard can't be written, and LeaseError if
    another run has taken over the store.
    """
    journal = conversion.journal(plan.shard)
    report = report_of_existing(conversion.store, plan.shard)
    if report is None:
        report = write_shard(plan, conversion, _convert_clips(plan, conversion, journal))
    if isinstance(report, ShardReport):
        # Clear the journal last. Until the sidecar exists, the journal is all that a killed task leaves behind.
        journal.clear()
    return report


def recover_partial_shard(journal: Journal, conversion: Conversion) -> ShardReport | None:
    """Publish the clips in a killed run's journal as a separate shard. Returns None if the journal has no clips to
    publish.

    The clips need a separate shard because the killed run's plan is lost and a new plan may group the clips
    differently.
    """
    results = [] if conversion.store.exists(journal.shard.sidecar) else list(journal.read())
    if not results:  # the run was killed while it cleared the journal, or the first part is missing
        journal.clear()
        return None
    segments = tuple(result.segment for result in results)
    shard_id = digest_of([[segment.key, segment.end_ms, journal.folder] for segment in segments])
    plan = ShardPlan(Shard(segments[0].split, shard_id), segments, (0,) * len(segments))
    report = report_of_existing(conversion.store, plan.shard) or write_shard(plan, conversion, iter(results))
    assert isinstance(report, ShardReport), "journals contain no Wait"
    journal.clear()
    return report


def write_shard(plan: ShardPlan, conversion: Conversion, results: Iterator[ClipResult | Wait]) -> ShardReport | Wait:
    """Write results to a tar as they arrive, then publish the tar, its measures and its sidecar.

    If one of the results is a Wait, it is returned immediately and nothing is published.
    """
    store, shard = conversion.store, plan.shard
    rows, measures = list[SidecarRow](), dict[str, Measures]()
    with store.scratch() as folder:
        tar = folder / "shard.tar"
        try:
            with closing(ShardWriter(tar)) as writer:
                for result in results:
                    if isinstance(result, Wait):
                        return result
                    members = dict[str, Any]()
                    if result.status == WRITTEN:
                        fbank_TM = np.frombuffer(result.fbank, FBANK_DTYPE).reshape(-1, NUM_MEL_BINS)
                        members = writer.write(result.segment, fbank_TM, result.audio or None, result.source)
                        measures[result.segment.key] = _measures_of(result, fbank_TM)
                    rows.append(_sidecar_row(result, members))
        except OSError as error:
            hint = "; free some space on that disk" if is_disk_full(error) else ""
            raise StoreError(f"can't write {tar}: {type(error).__name__}: {error}{hint}") from error
        checksum = checksum_of(tar)
        if measures:
            store.publish(tar, shard.tar, conversion.check_lease)
            write_measures(store, shard, list(measures), list(measures.values()))
        conversion.check_lease()
        # Write the sidecar last, because it marks the shard as finished.
        write_sidecar(store, shard.sidecar, rows, conversion.fingerprint, checksum)
    return _report(shard, [(row.status, row.reason) for row in rows], checksum.num_bytes, is_new=True)


def _sidecar_row(result: ClipResult, members: dict[str, Any]) -> SidecarRow:
    """Create the sidecar row of a result. members: fields from `ShardWriter.write`, or empty for a failure."""
    return SidecarRow(
        key=result.segment.key,
        **asdict(result.segment),
        status=result.status,
        reason=result.reason or "",
        detail=result.detail,
        attempts=result.attempts,
        source=result.source,
        **members,
    )


def _convert_clips(plan: ShardPlan, conversion: Conversion, journal: Journal) -> Iterator[ClipResult | Wait]:
    """Yield the results in the journal, then fetch, convert and journal the remaining clips. Stops after yielding a
    Wait."""
    num_stored = 0
    for result in journal.read():
        yield result
        num_stored += 1
    pending: list[ClipResult] = []
    remaining = islice(zip(plan.segments, plan.attempts, strict=True), num_stored, None)
    for segment, earlier_attempts, future in fetch_ahead(remaining, conversion.fetcher):
        fetched = future.result()
        if isinstance(fetched, Wait):
            if stored := _without_outage(pending) if fetched.is_outage else pending:
                journal.append(num_stored, stored)
            yield fetched
            return
        attempts = earlier_attempts + fetched.num_attempts
        pending.append(convert_clip(segment, fetched.media, attempts, conversion.keep_audio))
        yield pending[-1]
        # Store several clips per part. With one clip per part, every clip would cost a request to the store. With one
        # part per shard, a killed task would lose the whole shard. Delay a part a little if its last failures may turn
        # out to be an outage.
        may_be_outage = pending[-1].reason in OUTAGE_REASONS and len(pending) < CLIPS_PER_PART + MAX_FAILURES_IN_A_ROW
        if len(pending) >= CLIPS_PER_PART and not may_be_outage:
            journal.append(num_stored, pending)
            num_stored += len(pending)
            pending = []


def _without_outage(results: Sequence[ClipResult]) -> Sequence[ClipResult]:
    """Drop the trailing failures that revealed an outage, so that their clips are fetched again."""
    end = len(results)
    while end and results[end - 1].reason in OUTAGE_REASONS:
        end -= 1
    return results[:end]


def _measures_of(result: ClipResult, fbank_TM: np.ndarray) -> Measures:
    if result.measures:
        return Measures(**result.measures)
    from pipeline.measures.measure import measure_stored  # see `convert_clip`

    return measure_stored(fbank_TM, result.audio)


def convert_clip(segment: Segment, media: Media | Failure, attempts: int, keep_audio: bool) -> ClipResult:
    """Decode a segment and compute its fbank and measures. If `media` is a Failure, the result has this failure.

    attempts: number of attempts at this clip in all runs. Raises RuntimeError, which names the clip's key, if the
    conversion hits a bug.
    """
    # Import PyTorch late, because drivers only submit shards and should not spend 600 MB of memory on it.
    import torch

    from pipeline.fbank import compute_fbank
    from pipeline.measures.measure import measure_clip

    try:
        clip = media if isinstance(media, Failure) else decode_segment(media, segment.start_ms, segment.end_ms)
        source = media.source
        if isinstance(clip, Failure):
            return ClipResult(segment, FAILED, attempts, clip.reason, clip.detail, source)
        fbank_TM = compute_fbank(torch.from_numpy(clip.waveform)).numpy().astype(FBANK_DTYPE)
        audio = encode_flac(clip.waveform) if keep_audio else b""
        measures = asdict(measure_clip(clip.waveform, fbank_TM, clip.media))
    except AudioTaggingError:
        raise
    except Exception as error:
        raise RuntimeError(f"can't convert clip {segment.key}: {type(error).__name__}: {error}") from error
    detail = SHORT if clip.is_short else ""
    return ClipResult(segment, WRITTEN, attempts, None, detail, source, fbank_TM.tobytes(), audio, measures)


def report_of_existing(store: Store, shard: Shard) -> ShardReport | None:
    """Return the report of a shard if the store has this shard, or None otherwise."""
    if not store.exists(shard.sidecar):
        return None
    rows = read_sidecar(store, shard.sidecar, ["status", "reason"]).to_pylist()
    return _report(shard, [(row["status"], row["reason"]) for row in rows], num_bytes=0, is_new=False)


def _report(shard: Shard, results: list[tuple[str, str]], num_bytes: int, is_new: bool) -> ShardReport:
    failures = Counter(Reason(reason) for status, reason in results if status == FAILED)
    return ShardReport(
        shard=shard,
        num_planned=len(results),
        num_written=len(results) - failures.total(),
        failures=dict(failures),
        num_bytes=num_bytes,
        is_new=is_new,
    )
