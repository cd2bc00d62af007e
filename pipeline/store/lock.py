"""The lease of a store: at most one run preprocesses into it.

Leases are numbered files, and the highest number is valid. A run creates the next number with a conditional write, so
of two competing runs one wins. The holder renews its lease by rewriting the file. Other runs may create the next number
once the lease has expired or its process is dead.
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
    """Holder and expiry of the lease."""

    token: str
    host: str
    pid: int
    process_started: float
    """host, pid and process_started identify an `Owner`."""
    expires: float
    """Seconds since 1970."""

    @property
    def holder(self) -> str:
        return f"{self.host.split()[0]}, process {self.pid}"

    @property
    def is_free(self) -> bool:
        """Whether the lease has expired, or its process on this host is dead."""
        return self.expires < time.time() or Owner(self.host, self.pid, self.process_started).is_dead


@dataclass
class Holder:
    """The holder's view of its lease."""

    store: Store
    lease: Lease
    number: int
    lost: str = ""
    """Reason for the loss of the lease; empty while it is held."""

    @property
    def name(self) -> str:
        return _name(self.number)

    def check(self) -> None:
        """Raise LeaseError if another run took over."""
        if self.lost:
            raise LeaseError(self.lost)

    def renew(self) -> None:
        """Extend the expiry, unless another run took over."""
        number, lease = _newest(self.store)
        if number != self.number and lease:
            self.lost = f"the run lost its lease of {self.store.root} to {lease.holder}: it paused"
            self.lost += (
                f" for more than {DURATION_S:.0f} s. Finished clips are stored. Stop the other run or wait for it"
            )
            return
        self.lease = replace(self.lease, expires=time.time() + DURATION_S)
        self.store.write_json(self.name, asdict(self.lease))


@contextmanager
def hold_lease(store: Store) -> Generator[Holder, None, None]:
    """Hold the store's lease within the context. Raises LeaseError if a live run holds it."""
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
            # Keep the file: the next lease continues its numbering.
            with suppress(StoreError):
                store.write_json(holder.name, asdict(lease) | {"expires": 0.0})


def _keep(holder: Holder, done: threading.Event) -> None:
    while not done.wait(RENEW_EVERY_S) and not holder.lost:
        # The next holder detects a lease that was not renewed in time.
        with suppress(StoreError):
            holder.renew()


def _take(store: Store, lease: Lease) -> int:
    number, current = _newest(store)
    if current and not current.is_free:
        raise _refusal(store, current)
    if not store.create_json(_name(number + 1), asdict(lease)):
        winner = _newest(store)[1]
        # A repeated request, after the first answer was lost, finds its own file.
        if winner and winner.token != lease.token:
            raise _refusal(store, winner)
    with suppress(StoreError):
        for name in store.list(FOLDER)[:-1]:
            store.remove(name)
    return number + 1


def _refusal(store: Store, lease: Lease) -> LeaseError:
    left_s = max(0.0, lease.expires - time.time())
    return LeaseError(
        f"{store.root} is locked by a run on {lease.holder} for at least {left_s:.0f} s. Wait, or retry then: locks of"
        " dead runs expire"
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
