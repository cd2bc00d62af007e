import itertools
import random

import pytest

from pipeline.config import PaceConfig
from pipeline.sources.rate_limit import PROBE_POLL_S, PROBE_S, Pace, Permit, Wait

CONFIG = PaceConfig(rest_s=100, max_rest_s=300)


def new_pace(clips_per_hour: int = 0) -> Pace:
    return Pace(CONFIG, clips_per_hour, random.Random(0))


def ask_when_due(pace: Pace, addresses: list[str], now_s: float) -> tuple[Permit, float]:
    """Ask as a worker does, and return the permit and the time at which it came."""
    while isinstance(turn := pace.ask(addresses, now_s), Wait):
        now_s += turn.seconds
    return turn, now_s


def test_an_address_keeps_its_budget_and_its_questions_are_spread_with_jitter() -> None:
    pace, now_s, times = new_pace(300), 0.0, []
    while now_s < 3600:
        _, now_s = ask_when_due(pace, ["a"], now_s)
        times.append(now_s)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 290 <= len(times) <= 310
    assert 0.7 * 12 <= min(pauses) < 9.5
    assert 14.5 < max(pauses) <= 1.3 * 12


def test_each_address_has_a_budget_of_its_own() -> None:
    pace, now_s, count = new_pace(300), 0.0, {"a": 0, "b": 0, "c": 0}
    while now_s < 3600:
        permit, now_s = ask_when_due(pace, list(count), now_s)
        count[permit.address] += 1
    assert all(290 <= each <= 310 for each in count.values())


def test_without_a_limit_nobody_waits() -> None:
    pace = new_pace()
    assert [pace.ask(["a"], 0.0) for _ in range(100)] == [Permit("a")] * 100


@pytest.mark.parametrize(("asked_s", "rest_s"), [(7, 7), (0, 1), (86_400, 300)])
def test_it_rests_as_long_as_it_is_asked_to_within_bounds(asked_s: float, rest_s: float) -> None:
    pace = new_pace()
    pace.throttle("a", "clip", 0, asked_s)
    rest = pace.ask(["a"], 0)
    assert isinstance(rest, Wait)
    assert rest_s <= rest.seconds <= 1.3 * rest_s


def test_a_throttled_address_rests_while_others_go_on_and_probes_once() -> None:
    pace = new_pace()
    pace.throttle("a", "clip", now_s=0)
    assert {pace.ask(["a", "b"], now_s).address for now_s in range(10)} == {"b"}  # pyright: ignore
    alone = pace.ask(["a"], 0)
    assert isinstance(alone, Wait)
    assert alone.is_rest
    assert 100 <= alone.seconds <= 130
    assert pace.ask(["a"], 131) == Permit("a")
    waiting = pace.ask(["a"], 132)
    assert waiting == Wait(PROBE_POLL_S, is_rest=False)
    pace.succeed("a", 133)
    assert [pace.ask(["a"], 134) for _ in range(3)] == [Permit("a")] * 3


def test_a_probe_that_never_comes_back_is_followed_by_another() -> None:
    pace = new_pace()
    pace.throttle("a", "clip", now_s=0)
    assert pace.ask(["a"], 131) == Permit("a")
    assert isinstance(pace.ask(["a"], 131 + PROBE_S - 1), Wait)
    assert pace.ask(["a"], 131 + PROBE_S + 1) == Permit("a")


def test_rests_grow_up_to_a_limit_and_late_answers_do_not_prolong_them() -> None:
    pace, now_s, rests = new_pace(), 0.0, []
    for _ in range(4):
        pace.throttle("a", "clip", now_s)
        pace.throttle("a", "other", now_s)
        turn = pace.ask(["a"], now_s)
        assert isinstance(turn, Wait)
        rests.append(turn.seconds)
        now_s += turn.seconds + 0.1
        assert isinstance(pace.ask(["a"], now_s), Permit)
    for rest, least in zip(rests, (100, 200, 300, 300), strict=True):
        assert least <= rest <= 1.3 * least
    assert pace.num_throttled == 8


def test_answers_to_questions_from_before_the_rest_do_not_end_it() -> None:
    pace = new_pace()
    pace.ask(["a"], 0)
    pace.throttle("a", "clip", now_s=1)
    pace.succeed("a", 2)
    assert isinstance(pace.ask(["a"], 3), Wait)


def test_a_clip_that_is_always_throttled_is_known() -> None:
    pace = new_pace()
    assert [pace.throttle("a", "clip", 1000.0 * n) for n in range(3)] == [1, 2, 3]
    assert pace.throttle("a", "other", 4000) == 1


@pytest.mark.parametrize("now_s", [0.0, 1e9])
def test_the_last_answer_is_known(now_s: float) -> None:
    pace = new_pace()
    pace.ask(["a"], now_s)
    assert pace.last_answer_s is None
    pace.succeed("a", now_s)
    assert pace.last_answer_s == now_s
