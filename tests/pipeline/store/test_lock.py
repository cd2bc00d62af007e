import multiprocessing
import os
import pickle
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.errors import CorruptError, LeaseError
from pipeline.store.layout import LEASES, lease
from pipeline.store.lock import DURATION_S, Lease, hold_lease
from pipeline.store.storage import Store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.getfixturevalue("s3_store") if request.param == "s3" else Store(str(tmp_path / "store"))


def test_second_run_is_refused_and_names_the_holder(store: Store) -> None:
    with hold_lease(store) as holder:
        with (
            pytest.raises(LeaseError, match=rf"is locked by .*process {os.getpid()}.* Wait") as error,
            hold_lease(store),
        ):
            pass
        assert error.value.exit_code == 75
        holder.renew()
        holder.check()
    with hold_lease(store):
        pass
    assert len(store.list(LEASES)) == 1


def hold(store: Store, held) -> None:
    with hold_lease(store):
        held.set()
        time.sleep(60)


@pytest.mark.process
def test_lease_of_a_killed_process_is_taken_over_immediately(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(store, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(LeaseError), hold_lease(store):
        pass
    process.kill()
    process.join()
    with hold_lease(store):
        pass


def test_unrenewed_lease_of_another_host_is_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_lease(store) as first:
        away = replace(first.lease, host="elsewhere")
        store.write_json(first.name, asdict(away))
        with pytest.raises(LeaseError, match="elsewhere"), hold_lease(store):
            pass
        monkeypatch.setattr("pipeline.store.lock.DURATION_S", -1.0)
        with hold_lease(store) as second:
            first.renew()
            with pytest.raises(
                LeaseError, match=rf"lost its lease .*process {os.getpid()}, .*UTC by the store's clock"
            ):
                first.check()
            second.renew()
            second.check()
    # The first one's end must not take the lease from whoever has it now.
    assert [Lease(**store.read_json(name)).token for name in store.list(LEASES)] == [second.lease.token]


def compete(root: str, wins, all_tried) -> None:
    try:
        with hold_lease(Store(root)):
            wins.put(os.getpid())
            all_tried.wait(60)
    except LeaseError:
        all_tried.wait(60)


@pytest.mark.process
def test_exactly_one_of_many_concurrent_runs_gets_the_lease(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    wins = context.SimpleQueue()
    arguments = (str(tmp_path), wins, context.Barrier(8))
    processes = [context.Process(target=compete, args=arguments) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert isinstance(wins.get(), int)
    assert wins.empty()


def test_invalid_lease_is_named(store: Store) -> None:
    store.write_json(lease(1), {"who": "me"})
    with pytest.raises(CorruptError, match=r"00000001.json is not a valid lease"), hold_lease(store):
        pass


@pytest.mark.parametrize("offset_s", [-600.0, 600.0])
def test_clock_of_the_holder_does_not_matter(store: Store, offset_s: float) -> None:
    with hold_lease(store) as first:
        expires = time.time() + DURATION_S + offset_s
        store.write_json(first.name, asdict(replace(first.lease, host="elsewhere", expires=expires)))
        times = r"for at least 1\d\d s \(renewed at [\d:]+ UTC, now [\d:]+ UTC by the store's clock\)"
        with pytest.raises(LeaseError, match=times), hold_lease(store):
            pass
        first.check()


def test_lease_with_an_old_modification_time_is_taken_over_regardless_of_its_content(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with hold_lease(store) as first:
        store.write_json(first.name, asdict(replace(first.lease, host="elsewhere", expires=time.time() + 600)))
        old_s = time.time() - DURATION_S - 5
        os.utime(store.path(first.name), (old_s, old_s))
        with hold_lease(store) as second:
            second.check()


def test_check_reads_the_store_before_the_next_renewal(store: Store) -> None:
    with hold_lease(store) as first:
        guard = pickle.loads(pickle.dumps(first.guard))
        first.check()
        guard.check()
        store.write_json(lease(first.number + 1), asdict(replace(first.lease, host="elsewhere")))
        for check in (guard.check, first.check):
            with pytest.raises(LeaseError, match=r"lost its lease of .* to elsewhere"):
                check()
