"""Fetch clips ahead of decoding, with deadlines, retries and rate limits.

General retry libraries don't fit, because a response may concern the clip, the address or the whole source. Only
responses that concern the clip count as attempts.
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
"""Seconds after the deadline until an attempt is abandoned. Most sources enforce the deadline themselves."""
MAX_BACKOFF_S = 60.0
SHORT_COOLDOWN_S = 5.0
"""Longest cooldown, in seconds, that a task waits for. If the cooldown is longer, the task returns its shard and frees
its CPU."""
OUTAGE_REASONS = {
    Reason.CONNECTION,
    Reason.TIMED_OUT,
    Reason.SERVER_ERROR,
    Reason.EXTRACTION_FAILED,
    Reason.UNKNOWN,
    Reason.LOGIN_REQUIRED,
    Reason.FORBIDDEN,
}
"""Reasons that suggest an outage of the source if one clip after another fails with them."""


@dataclass(frozen=True)
class Fetcher:
    """A source of media, together with the fetch settings and the rate limiter."""

    source: Source
    config: FetchConfig
    limiter: RateLimiter = field(default_factory=LocalRateLimiter)


@dataclass(frozen=True, slots=True)
class Fetched:
    """The result of fetching a clip."""

    media: Media | Failure
    num_attempts: int


def fetch_ahead(
    segments: Iterable[tuple[Segment, int]], fetcher: Fetcher
) -> Iterator[tuple[Segment, int, Future[Fetched | Wait]]]:
    """Yield each segment in order, with the number of earlier attempts and a future for the fetched media.

    `num_threads` clips are fetched ahead, so that fetching can wait for the network while decoding uses the CPU.
    Fetching more clips would need more memory for their media.
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
        # Don't join the threads, because a running attempt may last until its deadline.
        pool.shutdown(wait=False, cancel_futures=True)


def fetch_clip(segment: Segment, fetcher: Fetcher, *, is_retry: bool = False) -> Fetched | Wait:
    """Fetch a clip once an address has a permit, and retry transient failures.

    Throttled requests and outages of the source do not count as attempts. However, if a clip was throttled
    `max_attempts` times, this failure becomes its result. Returns a Wait if every address is cooling down for longer
    than `SHORT_COOLDOWN_S`.

    is_retry: True if the clip failed in an earlier run.
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
            # A rerun may consist of nothing but clips that always fail. Their failures do not suggest an outage, unless
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
    """Make one attempt to fetch a clip, and abandon it after the deadline.

    If the source raises an exception, the result is a failure of the clip. This project's own errors, a lack of memory
    and a full disk (StoreError) are raised instead, because the clip is not to blame.
    """
    outcome: list[Media | Failure | BaseException] = []

    def attempt() -> None:
        try:
            outcome.append(source.fetch(segment, proxy))
        except BaseException as error:
            outcome.append(error)

    # Use a daemon thread, so that an attempt that hangs forever does not keep the process alive.
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
    # Servers can trigger unforeseen errors in any library, but a single clip must not end the shard.
    return Failure(Reason.UNKNOWN, f"{segment.key}: {describe(result)}")
