"""Fetch clips ahead of decoding, with deadlines, retries and rate limits.

No retry library fits, because an answer may concern the clip, the address or the whole source. Only answers about the
clip count as attempts at it.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.backoff import backoff
from pipeline.config import FetchConfig
from pipeline.errors import AudioTaggingError, StoreError, describe, is_disk_full
from pipeline.records import Failure, FailureCategory, Media, Reason, Segment
from pipeline.sources.rate_limit import LocalRateLimiter, RateLimiter, Wait
from pipeline.sources.source import Source

GRACE_S = 5.0
"""Seconds from the deadline until an attempt is abandoned. Most sources enforce the deadline themselves."""
MAX_BACKOFF_S = 60.0
SHORT_COOLDOWN_S = 5.0
"""Longest cooldown to sleep through. For a longer cooldown, the task returns its shard and frees its CPU."""
OUTAGE_REASONS = {
    Reason.CONNECTION,
    Reason.TIMED_OUT,
    Reason.SERVER_ERROR,
    Reason.EXTRACTION_FAILED,
    Reason.UNKNOWN,
    Reason.LOGIN_REQUIRED,
    Reason.FORBIDDEN,
}
"""Reasons that suggest an outage of the source if clip after clip fails with them."""


@dataclass(frozen=True)
class Fetcher:
    """A source of media, with the fetch settings and the rate limiter."""

    source: Source
    config: FetchConfig
    limiter: RateLimiter = field(default_factory=LocalRateLimiter)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Result of fetching a clip."""

    media: Media | Failure
    num_attempts: int


def fetch_ahead(
    segments: Iterable[tuple[Segment, int]], fetcher: Fetcher
) -> Iterator[tuple[Segment, int, Future[Fetched | Wait]]]:
    """Yield each segment in order, with its number of earlier attempts and the future of its fetch.

    Fetching waits for the network while decoding needs the CPU, so `num_threads` clips are fetched ahead. More clips
    would need more memory for their media.
    """
    pool = ThreadPoolExecutor(fetcher.config.num_threads)
    window: deque[tuple[Segment, int, Future[Fetched | Wait]]] = deque()
    try:
        for segment, earlier_attempts in segments:
            future = pool.submit(fetch_clip, segment, fetcher, is_retry=earlier_attempts > 0)
            window.append((segment, earlier_attempts, future))
            if len(window) == fetcher.config.num_threads:
                yield window.popleft()
        yield from window
    finally:
        # Don't join the threads, because a running attempt may take until its deadline.
        pool.shutdown(wait=False, cancel_futures=True)


def fetch_clip(segment: Segment, fetcher: Fetcher, *, is_retry: bool = False) -> Fetched | Wait:
    """Fetch a clip when an address has a permit, and retry transient failures.

    Throttling and outages of the source do not count as attempts, but after `max_attempts` throttled answers throttling
    becomes the clip's result. Returns a Wait if every address cools down for longer than `SHORT_COOLDOWN_S`.

    is_retry: the clip failed in an earlier run.
    """
    config, limiter = fetcher.config, fetcher.limiter
    pauses = backoff(config.backoff_s, MAX_BACKOFF_S)
    num_attempts = 1
    while True:
        turn = limiter.acquire()
        if isinstance(turn, Wait):
            if turn.is_cooldown and turn.seconds > SHORT_COOLDOWN_S:
                return turn
            time.sleep(turn.seconds)
            continue
        proxy = turn.address if "://" in turn.address else None
        media = fetch_within(fetcher.source, segment, proxy, config.deadline_s)
        reason = media.reason if isinstance(media, Failure) else None
        if isinstance(media, Failure) and media.reason.category is FailureCategory.THROTTLED:
            if limiter.report_throttled(turn, segment.key, media.retry_after_s) >= config.max_attempts:
                return Fetched(media, num_attempts)
            continue
        if isinstance(media, Failure) and media.reason in OUTAGE_REASONS:
            # A rerun may consist only of clips that will always fail. Their failures do not suggest an outage, unless
            # the source could not be reached at all.
            may_be_outage = media.reason is Reason.CONNECTION or not is_retry
            if may_be_outage and limiter.report_outage(turn, segment.key, media.detail):
                continue
        else:
            limiter.report_success(turn)
        if reason is None or reason.category is not FailureCategory.TRANSIENT or num_attempts == config.max_attempts:
            return Fetched(media, num_attempts)
        time.sleep(next(pauses))
        num_attempts += 1


def fetch_within(source: Source, segment: Segment, proxy: str | None, deadline_s: float) -> Media | Failure:
    """Make one attempt, and abandon it after the deadline.

    Exceptions of a source become failures of the clip. Our own errors, a lack of memory and a full disk (StoreError)
    are raised instead, because they are not the clip's fault.
    """
    outcome: list[Media | Failure | BaseException] = []

    def attempt() -> None:
        try:
            outcome.append(source.fetch(segment, proxy))
        except BaseException as error:
            outcome.append(error)

    # Use a daemon thread, because an attempt that hangs forever must not keep the process alive.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(deadline_s + GRACE_S)
    if not outcome:
        return Failure(Reason.TIMED_OUT, f"{segment.key}: no answer within {deadline_s} s")
    result = outcome[0]
    if not isinstance(result, BaseException):
        return result
    if is_disk_full(result):
        raise StoreError(f"no space to fetch {segment.key}: {result}; free some space on that disk") from result
    if isinstance(result, AudioTaggingError | MemoryError) or not isinstance(result, Exception):
        raise result
    # Foreign servers can trigger unforeseen errors in any library, and one clip must not end a shard.
    return Failure(Reason.UNKNOWN, f"{segment.key}: {describe(result)}")
