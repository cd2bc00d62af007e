import itertools
import pickle
import random

import pytest

from pipeline.config import RateLimitConfig
from pipeline.sources.rate_limit import (
    MAX_FAILURES_IN_A_ROW,
    PROBE_POLL_S,
    PROBE_S,
    LocalRateLimiter,
    Permit,
    Wait,
)

CONFIG = RateLimitConfig(cooldown_s=100, outage_cooldown_s=10, max_cooldown_s=300)
A = Permit("a")


class Clock:
    """A clock that tests advance."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> LocalRateLimiter:
    return LocalRateLimiter(CONFIG, clock=clock, rng=random.Random(0))


def acquire_when_due(limiter: LocalRateLimiter, addresses: list[str], clock: Clock) -> Permit:
    """Wait for a permit as a worker does."""
    while isinstance(turn := limiter.acquire(addresses), Wait):
        clock.now_s += turn.seconds
    return turn


def wait_of(limiter: LocalRateLimiter) -> Wait:
    turn = limiter.acquire(["a"])
    assert isinstance(turn, Wait)
    return turn


def fail_clips(limiter: LocalRateLimiter, count: int, name: str = "clip") -> list[bool]:
    return [limiter.report_outage(A, f"{name}{number}", "HTTP 500") for number in range(count)]


def test_requests_keep_the_hourly_limit_with_jittered_spacing(clock: Clock) -> None:
    limiter, times = LocalRateLimiter(CONFIG, 300, clock=clock, rng=random.Random(0)), []
    while clock.now_s < 3600:
        acquire_when_due(limiter, ["a"], clock)
        times.append(clock.now_s)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 290 <= len(times) <= 310
    assert 0.7 * 12 <= min(pauses) < 9.5
    assert 14.5 < max(pauses) <= 1.3 * 12


def test_hourly_limit_applies_per_address(clock: Clock) -> None:
    limiter, count = LocalRateLimiter(CONFIG, 300, clock=clock, rng=random.Random(0)), {"a": 0, "b": 0, "c": 0}
    while clock.now_s < 3600:
        count[acquire_when_due(limiter, list(count), clock).address] += 1
    assert all(290 <= each <= 310 for each in count.values())


def test_permits_are_immediate_without_a_limit(limiter: LocalRateLimiter) -> None:
    assert [limiter.acquire(["a"]) for _ in range(100)] == [A] * 100


@pytest.mark.parametrize(
    ("asked_s", "cooldown_s"), [(7, 7), (0, 1), (86_400, 300), (float("9" * 200), 300), (float("inf"), 300)]
)
def test_cooldown_follows_retry_after_within_bounds(
    limiter: LocalRateLimiter, asked_s: float, cooldown_s: float
) -> None:
    limiter.report_throttled(A, "clip", asked_s)
    assert cooldown_s <= wait_of(limiter).seconds <= 1.3 * cooldown_s


def test_throttled_address_cools_down_then_probes_once(limiter: LocalRateLimiter, clock: Clock) -> None:
    limiter.report_throttled(A, "clip")
    for clock.now_s in range(10):
        assert limiter.acquire(["a", "b"]) == Permit("b")
    clock.now_s = 0
    alone = wait_of(limiter)
    assert (alone.is_cooldown, alone.is_outage) == (True, False)
    assert 100 <= alone.seconds <= 130
    clock.now_s = 131
    assert limiter.acquire(["a"]) == A
    clock.now_s = 132
    assert limiter.acquire(["a"]) == Wait(PROBE_POLL_S, is_cooldown=False)
    clock.now_s = 133
    limiter.report_success(A)
    clock.now_s = 134
    assert [limiter.acquire(["a"]) for _ in range(3)] == [A] * 3


def test_probe_without_a_result_is_followed_by_another(limiter: LocalRateLimiter, clock: Clock) -> None:
    limiter.report_throttled(A, "clip")
    clock.now_s = 131
    assert limiter.acquire(["a"]) == A
    clock.now_s = 131 + PROBE_S - 1
    assert isinstance(limiter.acquire(["a"]), Wait)
    clock.now_s = 131 + PROBE_S + 1
    assert limiter.acquire(["a"]) == A


def test_cooldowns_grow_to_a_limit_and_late_reports_do_not_lengthen_them(
    limiter: LocalRateLimiter, clock: Clock
) -> None:
    cooldowns = []
    for _ in range(4):
        limiter.report_throttled(A, "clip")
        limiter.report_throttled(A, "other")
        cooldowns.append(wait_of(limiter).seconds)
        clock.now_s += cooldowns[-1] + 0.1
        assert limiter.acquire(["a"]) == A
    for cooldown_s, least_s in zip(cooldowns, (100, 200, 300, 300), strict=True):
        assert least_s <= cooldown_s <= 1.3 * least_s
    assert limiter.status().num_throttled == 8


def test_answers_to_earlier_requests_do_not_end_a_cooldown(limiter: LocalRateLimiter, clock: Clock) -> None:
    limiter.acquire(["a"])
    clock.now_s = 1
    limiter.report_throttled(A, "clip")
    clock.now_s = 2
    limiter.report_success(A)
    clock.now_s = 3
    assert isinstance(limiter.acquire(["a"]), Wait)


def test_throttled_requests_are_counted_per_clip(limiter: LocalRateLimiter, clock: Clock) -> None:
    for clock.now_s in (0, 1000, 2000):
        assert limiter.report_throttled(A, "clip") == 1 + clock.now_s / 1000
    assert limiter.report_throttled(A, "other") == 1


def test_different_clips_failing_in_a_row_are_an_outage(limiter: LocalRateLimiter, clock: Clock) -> None:
    assert fail_clips(limiter, MAX_FAILURES_IN_A_ROW + 1) == [False] * (MAX_FAILURES_IN_A_ROW - 1) + [True] * 2
    wait = wait_of(limiter)
    assert (wait.is_cooldown, wait.is_outage, limiter.status().outage) == (True, True, "HTTP 500")
    assert 10 <= wait.seconds <= 13
    clock.now_s = 14
    # One probe per second, so that a clip that always fails can't block the rest.
    assert limiter.acquire(["a"]) == A
    assert wait_of(limiter) == Wait(PROBE_POLL_S, is_cooldown=False)
    assert fail_clips(limiter, MAX_FAILURES_IN_A_ROW, "later") == [False] * (MAX_FAILURES_IN_A_ROW - 1) + [True]
    assert 20 <= wait_of(limiter).seconds <= 26
    clock.now_s = 41
    limiter.report_success(A)
    assert limiter.acquire(["a"]) == limiter.acquire(["a"]) == A
    assert limiter.status().outage == ""


def test_failures_of_one_clip_or_between_successes_are_no_outage(limiter: LocalRateLimiter) -> None:
    assert not any(limiter.report_outage(A, "clip", "HTTP 500") for _ in range(100))
    for _ in range(10):
        limiter.report_success(A)
        assert not any(fail_clips(limiter, MAX_FAILURES_IN_A_ROW - 1))


def test_unreachable_proxy_does_not_stop_other_addresses(limiter: LocalRateLimiter) -> None:
    fail_clips(limiter, MAX_FAILURES_IN_A_ROW)
    assert limiter.acquire(["a", "b"]) == Permit("b")


def test_idle_time_restarts_with_each_answer(limiter: LocalRateLimiter, clock: Clock) -> None:
    clock.now_s = 5
    limiter.acquire(["a"])
    assert limiter.status().idle_s == 5
    limiter.report_success(A)
    assert limiter.status().idle_s == 0


def test_pickled_limiter_starts_fresh() -> None:
    limiter = LocalRateLimiter(CONFIG)
    limiter.report_throttled(Permit("local"), "clip")
    assert pickle.loads(pickle.dumps(limiter)).acquire() == Permit("local")
