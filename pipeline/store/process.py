"""Identify the process that owns files on disk, to tell leftovers from files that are in use."""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

TOLERANCE_S = 2.0


@dataclass(frozen=True)
class Owner:
    """A process, identified uniquely across machines and restarts."""

    machine: str
    """The machine or container in which the process id is valid."""
    pid: int
    started: float
    """Start of the process in seconds since boot, so that changes of the clock don't matter. It distinguishes the
    process from later processes with the same id."""

    @property
    def is_dead(self) -> bool:
        """True if the process has certainly ended. Processes on other machines never count as dead."""
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
    namespace = Path("/proc/self/ns/pid")  # containers may share a host name and use the same low process ids
    return f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}".strip()


@cache
def _owner(pid: int) -> Owner:
    return Owner(machine(), pid, _started(psutil.Process(pid)))


def _started(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()
