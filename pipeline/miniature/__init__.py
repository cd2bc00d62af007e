"""Create and serve a miniature AudioSet with real class names, synthetic sounds, real encodings and faults.

`make_miniature` writes tables in AudioSet's format to `metadata/`, the media to `media/`, and a plan with the sounds,
times and fault of each clip to `plan.json`. `serve_miniature` serves the media on the loopback interface.
"""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import InputError, StoreError, describe
from pipeline.miniature.media import make_media
from pipeline.miniature.plan import Fault, PlannedClip, SoundEvent, from_json, plan_clips, to_json
from pipeline.miniature.server import MiniatureServer, serve_clips
from pipeline.miniature.tables import write_class_labels, write_segments

__all__ = ["Fault", "Miniature", "MiniatureServer", "PlannedClip", "SoundEvent", "make_miniature", "serve_miniature"]

SPLITS = ("balanced_train", "unbalanced_train", "eval")
PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class Miniature:
    """A miniature AudioSet on disk."""

    folder: Path
    clips: tuple[PlannedClip, ...]

    @property
    def metadata_folder(self) -> Path:
        return self.folder / "metadata"

    @property
    def media_folder(self) -> Path:
        return self.folder / "media"


def make_miniature(
    folder: Path,
    *,
    num_train: int = 400,
    num_eval: int = 120,
    seed: int = 0,
    num_workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Miniature:
    """Create a miniature in a folder, unless the folder already contains the same miniature.

    Raises ConfigError if the requested sizes are too small, and StoreError if the folder contains other files or can't
    be written.

    on_progress: called with the number of finished clips and the total number of clips.
    """
    clips = plan_clips(num_train, num_eval, seed)
    miniature = Miniature(folder.absolute(), clips)
    if _is_made(miniature):
        return miniature
    try:
        _refuse_other_content(miniature.folder)
        building = _clear_sibling(miniature.folder, "part")
        _write_tables(clips, building / "metadata")
        _write_media(clips, building / "media", num_workers, on_progress or (lambda num_made, num_clips: None))
        (building / PLAN_NAME).write_text(to_json(clips), encoding="utf-8")
        _put_in_place(building, miniature.folder)
    except OSError as error:
        raise StoreError(
            f"can't write the miniature to {folder}: {describe(error)}; choose a writable folder"
        ) from error
    return miniature


@contextmanager
def serve_miniature(folder: Path, port: int = 0) -> Iterator[MiniatureServer]:
    """Serve a miniature's media on 127.0.0.1 within the context. Port 0 selects a free port.

    Raises InputError if the folder contains no miniature, and ConfigError if the port is in use.
    """
    path = folder / PLAN_NAME
    if not path.is_file():
        raise InputError(f"expected a miniature in {folder}, found no {PLAN_NAME}; make one with make_miniature")
    try:
        clips = from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a miniature's plan: {describe(error)}; make the miniature again") from error
    with serve_clips(clips, folder / "media", port) as server:
        yield server


def _is_made(miniature: Miniature) -> bool:
    # Only compare the plans. The plan determines the media, and the folder only gets its final name once it is
    # complete.
    plan = miniature.folder / PLAN_NAME
    if not plan.is_file() or plan.read_bytes() != to_json(miniature.clips).encode():
        return False
    names = [clip.file_name for clip in miniature.clips if clip.file_name]
    return all((miniature.media_folder / name).is_file() for name in names)


def _refuse_other_content(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / PLAN_NAME).is_file():
        raise StoreError(
            f"expected a new folder, an empty folder or an earlier miniature, found other files in {folder}. Nothing"
            " was changed; choose another folder"
        )


def _clear_sibling(folder: Path, suffix: str) -> Path:
    """Return the folder's path with a suffix added. If a killed call has left a folder there, it is removed."""
    sibling = folder.with_name(f"{folder.name}.{suffix}")
    if sibling.exists():
        shutil.rmtree(sibling)
    return sibling


def _write_tables(clips: tuple[PlannedClip, ...], folder: Path) -> None:
    folder.mkdir(parents=True)
    write_class_labels(folder / "class_labels_indices.csv")
    for split in SPLITS:
        segments = [clip.segment for clip in clips if clip.segment.split == split]
        write_segments(folder / f"{split}_segments.csv", segments)


def _write_media(
    clips: tuple[PlannedClip, ...], folder: Path, num_workers: int, on_progress: Callable[[int, int], None]
) -> None:
    folder.mkdir()
    # Use threads, because NumPy and the encoders release the GIL. Unlike processes, threads end if this process is
    # killed.
    with ThreadPoolExecutor(num_workers) as pool:
        for num_made, _ in enumerate(pool.map(partial(make_media, folder=folder), clips), start=1):
            on_progress(num_made, len(clips))


def _put_in_place(building: Path, folder: Path) -> None:
    old = _clear_sibling(folder, "old")
    if folder.exists():
        folder.rename(old)
    building.rename(folder)
    if old.exists():
        shutil.rmtree(old)
