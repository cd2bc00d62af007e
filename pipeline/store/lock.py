"""The lease of a store, which ensures that only one run at a time preprocesses into it.

Leases are numbered files, and the lease with the highest number is valid. A run creates the next number with a
conditional write, so if several runs compete, only one of them wins. The holder renews its lease by rewriting the file.
Another run may create the next number once the lease has been released, has not been renewed for `DURATION_S`, or
belongs to a dead process.

The clocks of different machines are never compared. The age of a lease is computed from two modification times that the
store reports: that of the lease, and that of a file written just now.
"""

import secrets
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

from pipeline.errors import CorruptError, LeaseError, StoreError
from pipeline.store.layout import LEASES
from pipeline.store.layout import lease as _name
from pipeline.store.process import Owner, this_process
from pipeline.store.storage import Store

DURATION_S = 120.0
RENEW_EVERY_S = 20.0


@dataclass(frozen=True)
class Lease:
    """A lease, with its holder and its expiry."""

    token: str
    host: str
    pid: int
    process_started: float
    """Start time of the process. Together with the host and the pid, it identifies an `Owner`."""
    expires: float
    """Expiry in seconds since 1970 by the holder's clock, or 0 once the lease has been released. Other machines only
    check whether it is 0."""

    @property
    def holder(self) -> str:
        return f"{self.host.split()[0]}, process {self.pid}"

    @property
    def is_free(self) -> bool:
        """True if the lease has been released, or if its process ran on this host and is dead."""
        return self.expires == 0 or Owner(self.host, self.pid, self.process_started).is_dead


@dataclass(frozen=True)
class LeaseGuard:
    """The number of a held lease. Tasks in other processes use it to check the lease before they write."""

    store: Store
    number: int

    def check(self) -> None:
        """Raise LeaseError if another run has taken over the store. This costs one listing."""
        names = self.store.list(LEASES)
        if names and _number_of(names[-1]) > self.number:
            raise LeaseError(_loss(self.store, names[-1]))


@dataclass
class Holder:
    """The state of a lease in the process that holds it."""

    store: Store
    lease: Lease
    number: int
    lost: str = ""
    """The reason why the lease was lost, or empty while it is held."""
    renewed_s: float = field(default_factory=time.time)
    """Time of the last renewal, by this machine's clock."""

    @property
    def name(self) -> str:
        return _name(self.number)

    @property
    def guard(self) -> LeaseGuard:
        return LeaseGuard(self.store, self.number)

    def check(self) -> None:
        """Check the lease in the store, and raise LeaseError if another run has taken over."""
        if not self.lost:
            try:
                self.guard.check()
            except LeaseError as error:
                self._lose(str(error))
        if self.lost:
            raise LeaseError(self.lost)

    def _lose(self, reason: str) -> None:
        self.lost = f"{reason}. This run's last renewal was at {_clock(self.renewed_s)} by this machine's clock"

    def renew(self) -> None:
        """Extend the lease, unless another run has taken over."""
        number, lease = _newest(self.store)
        if lease and (number != self.number or lease.token != self.lease.token):
            self._lose(_loss(self.store, _name(number)))
            return
        now_s = time.time()
        self.lease = replace(self.lease, expires=now_s + DURATION_S)
        self.store.write_json(self.name, asdict(self.lease))
        self.renewed_s = now_s


@contextmanager
def hold_lease(store: Store) -> Generator[Holder, None, None]:
    """Hold the store's lease within the context. Raises LeaseError if another live run holds it."""
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
        # Keep the file, because the next lease continues its numbering.
        with suppress(StoreError):
            holder.check()
            store.write_json(holder.name, asdict(lease) | {"expires": 0.0})


def _keep(holder: Holder, done: threading.Event) -> None:
    while not done.wait(RENEW_EVERY_S) and not holder.lost:
        # Ignore failed renewals. If the lease expires, another run may take over, and `check` reports the loss.
        with suppress(StoreError):
            holder.renew()


def _take(store: Store, lease: Lease) -> int:
    number, current = _newest(store)
    if current and not current.is_free:
        renewed_s, now_s = store.modified_s(_name(number)), store.now_s()
        if now_s - renewed_s <= DURATION_S:
            raise _refusal(store, current, renewed_s, now_s)
    if not store.create_json(_name(number + 1), asdict(lease)):
        winner_number, winner = _newest(store)
        # If the response to the first request was lost, the repeated request finds this run's own lease.
        if winner and winner.token != lease.token:
            raise _refusal(store, winner, store.modified_s(_name(winner_number)), store.now_s())
    with suppress(StoreError):
        for name in store.list(LEASES)[:-1]:
            store.remove(name)
    return number + 1


def _refusal(store: Store, lease: Lease, renewed_s: float, now_s: float) -> LeaseError:
    left_s = max(0.0, renewed_s + DURATION_S - now_s)
    return LeaseError(
        f"{store.root} is locked by a run on {lease.holder} for at least {left_s:.0f} s (renewed at"
        f" {_clock(renewed_s)}, now {_clock(now_s)} by the store's clock). Wait, or retry then: locks of dead runs"
        " expire"
    )


def _loss(store: Store, name: str) -> str:
    """Explain that the lease was lost to the lease in file `name`."""
    holder, written = "another run", ""
    with suppress(StoreError, TypeError):  # the other run may be removing or replacing its file
        holder = Lease(**store.read_json(name)).holder
        written = f", whose lease was written at {_clock(store.modified_s(name))} by the store's clock"
    return (
        f"the run lost its lease of {store.root} to {holder}{written}: it was not renewed for more than"
        f" {DURATION_S:.0f} s. Finished clips are stored. Stop the other run or wait for it"
    )


def _clock(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%H:%M:%S UTC")


def _newest(store: Store) -> tuple[int, Lease | None]:
    names = store.list(LEASES)
    if not names:
        return 0, None
    try:
        return _number_of(names[-1]), Lease(**store.read_json(names[-1]))
    except (TypeError, ValueError) as error:
        raise CorruptError(f"{store.url(names[-1])} is not a valid lease: {error}; remove it") from error


def _number_of(name: str) -> int:
    return int(name.removesuffix(".json").rpartition("/")[2])
