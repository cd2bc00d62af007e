"""The lease of a store: of several runs that would preprocess into it, one works.

Each lease is a file named by a number that is created only if there is none, so of two that want the next number one
gets it. The highest number counts. Its holder renews it by rewriting it; once expired, or if its process is known to
be dead, the next number may be taken.
"""

import secrets
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from pipeline.errors import CorruptError, LeaseError, StoreError
from pipeline.store.process import Owner, this_process
from pipeline.store.storage import Store

FOLDER = "lease"
DURATION_S = 120.0
RENEW_EVERY_S = 20.0


@dataclass(frozen=True)
class Lease:
    """The run that works, and until when at least."""

    token: str
    host: str
    pid: int
    process_started: float
    """These three as in `Owner`."""
    expires: float
    """Seconds since 1970."""

    @property
    def holder(self) -> str:
        return f"{self.host.split()[0]}, process {self.pid}"

    @property
    def is_free(self) -> bool:
        """Whether it expired, or its process on this host is gone."""
        return self.expires < time.time() or Owner(self.host, self.pid, self.process_started).is_dead


@dataclass
class Holder:
    """A held lease, as its holder sees it."""

    store: Store
    lease: Lease
    number: int
    lost: str = ""
    """Why the lease is no longer held; empty while it is."""

    @property
    def name(self) -> str:
        return _name(self.number)

    def check(self) -> None:
        """Raise LeaseError if another run took over."""
        if self.lost:
            raise LeaseError(self.lost)

    def renew(self) -> None:
        """Write a later expiry, unless another run took over or the store could not be written for too long."""
        number, lease = _newest(self.store)
        if number != self.number and lease:
            self.lost = f"the run lost its lease of {self.store.root} to {lease.holder}: it paused"
            self.lost += f" for more than {DURATION_S:.0f} s. What it kept is kept; end the other run or wait for it"
            return
        self.lease = replace(self.lease, expires=time.time() + DURATION_S)
        self.store.write_json(self.name, asdict(self.lease))


@contextmanager
def hold_lease(store: Store) -> Generator[Holder, None, None]:
    """Hold the store's lease while the context lasts. Raises LeaseError if a live run holds it."""
    owner = this_process()
    lease = Lease(secrets.token_hex(8), owner.machine, owner.pid, owner.started, time.time() + DURATION_S)
    holder = Holder(store, lease, _take(store, lease))
    done = threading.Event()
    thread = threading.Thread(target=_keep, args=(holder, done), daemon=True)
    thread.start()
    try:
        yield holder
    finally:
        done.set()
        thread.join()
        if not holder.lost:
            # The number stays as a mark of where to count on.
            with suppress(StoreError):
                store.write_json(holder.name, asdict(lease) | {"expires": 0.0})


def _keep(holder: Holder, done: threading.Event) -> None:
    while not done.wait(RENEW_EVERY_S) and not holder.lost:
        # One that could not be renewed in time is seen by whoever takes it over.
        with suppress(StoreError):
            holder.renew()


def _take(store: Store, lease: Lease) -> int:
    number, current = _newest(store)
    if current and not current.is_free:
        raise _refusal(store, current)
    if not store.create_json(_name(number + 1), asdict(lease)):
        winner = _newest(store)[1]
        # A request that was repeated after its answer was lost meets what it made itself.
        if winner and winner.token != lease.token:
            raise _refusal(store, winner)
    with suppress(StoreError):
        for name in store.list(FOLDER)[:-1]:
            store.remove(name)
    return number + 1


def _refusal(store: Store, lease: Lease) -> LeaseError:
    left_s = max(0.0, lease.expires - time.time())
    return LeaseError(
        f"expected to be alone in {store.root}, found a run on {lease.holder}, that holds it for at"
        f" least {left_s:.0f} s: wait until it ends; if it died it is taken over after that time"
    )


def _newest(store: Store) -> tuple[int, Lease | None]:
    names = store.list(FOLDER)
    if not names:
        return 0, None
    try:
        return int(names[-1].removesuffix(".json").rpartition("/")[2]), Lease(**store.read_json(names[-1]))
    except (TypeError, ValueError) as error:
        raise CorruptError(f"{store.url(names[-1])} is not a valid lease: {error}; remove it") from error


def _name(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"
