"""Scratch folders. Their names identify the process that owns them, so that folders of dead processes can be
removed."""

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
"""Seconds without a write after which a scratch folder of another machine counts as abandoned."""


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Create a scratch folder, and remove it when the context exits."""
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
    """Remove the folders of dead processes and the abandoned folders of other machines. Returns the number of
    folders."""
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
        return False  # not a scratch folder of this project
    with suppress(FileNotFoundError):  # another process removed it
        return time.time() - max(file.stat().st_mtime for file in (folder, *folder.rglob("*"))) > ABANDONED_S
    return False


def _mark(machine: str) -> str:
    return hashlib.sha256(machine.encode()).hexdigest()[:12]
