"""Folders for files in the making. They are named by the process that makes them: those of dead ones can be removed."""

import hashlib
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.store.process import Owner, machine, this_process

PREFIX = "audioset"
ABANDONED_S = 24 * 3600.0
"""So long after the last write what another machine was making counts as abandoned."""


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder, gone afterwards."""
    folder = make_scratch(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_scratch(parent: Path) -> Path:
    owner = this_process()
    folder = parent / f"{PREFIX}-{_mark(owner.machine)}-{owner.pid}-{owner.started:.0f}-{uuid.uuid4().hex[:12]}"
    parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    return folder


def clear_scratch(parent: Path) -> int:
    """Remove the folders of processes that are dead, or of other machines and not written to for a day; count them."""
    folders = [folder for folder in parent.glob(f"{PREFIX}-*") if _is_left_behind(folder)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return len(folders)


def _is_left_behind(folder: Path) -> bool:
    try:
        _, mark, pid, started, _ = folder.name.split("-")
        if mark == _mark(machine()):
            return Owner(machine(), int(pid), float(started)).is_dead
    except ValueError:
        return False  # it is not ours
    with suppress(FileNotFoundError):  # it goes while it is looked at
        return time.time() - max(file.stat().st_mtime for file in (folder, *folder.rglob("*"))) > ABANDONED_S
    return False


def _mark(machine: str) -> str:
    return hashlib.sha256(machine.encode()).hexdigest()[:12]
