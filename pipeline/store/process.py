"""Owners of what lies on disk: processes, so that what a dead one left is told from what a live one uses."""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

TOLERANCE_S = 2.0


@dataclass(frozen=True)
class Owner:
    """A process."""

    machine: str
    """Scope in which process ids are valid."""
    pid: int
    started: float
    """Seconds after the machine's own start: tells a process from a later one of the same id, whatever the clock
    does."""

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to be gone; nothing is known of other machines."""
        if self.machine != machine():
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(_started(process) - self.started) > TOLERANCE_S or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def this_process() -> Owner:
    return _owner(os.getpid())


@cache
def machine() -> str:
    namespace = Path("/proc/self/ns/pid")  # containers may share a name, and count their processes from 1
    return f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}".strip()


@cache
def _owner(pid: int) -> Owner:
    return Owner(machine(), pid, _started(psutil.Process(pid)))


def _started(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()
