"""Find files in local folders, including folders behind symbolic links."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import quote

log = logging.getLogger(__name__)


def walk_files(folder: str, *, with_hidden: bool = False) -> Iterator[str]:
    """Yield the paths of all files below a folder, at any depth and in a fixed order.

    Links are followed, because users combine folders on several disks in this way. Each real folder is only visited
    once, so circular links do no harm. By default, hidden names are skipped, such as the `._` files that macOS writes.
    Pipes, dangling links and unreadable folders are skipped with a warning.
    """
    skipped: list[str] = []
    yield from _walk(folder, set(), skipped, with_hidden)
    if skipped:
        log.warning("skipped %d names that can't be read, such as %s", len(skipped), quote(skipped[0]))


def _walk(folder: str, visited: set[tuple[int, int]], skipped: list[str], with_hidden: bool) -> Iterator[str]:
    try:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            # Visit real folders before links, so that the files in real folders keep their own paths.
            found = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError:
        skipped.append(folder)
        return
    for entry in found:
        if entry.name.startswith(".") and not with_hidden:
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # for example, a link to itself
            is_folder = is_file = False
        if is_folder:
            yield from _walk(entry.path, visited, skipped, with_hidden)
        elif is_file:
            yield entry.path
        else:
            skipped.append(entry.path)
