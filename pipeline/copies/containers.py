"""List the containers of a copy of AudioSet. Containers are tars, zips and parquet files."""

import logging
import stat
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import braceexpand
import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.backoff import backoff
from pipeline.copies.hub import HUB, pin_commit
from pipeline.copies.refusals import check_access, throttling_of
from pipeline.errors import InputError, describe
from pipeline.shards.format import digest_of
from pipeline.sources.archives import READ_ERRORS
from pipeline.sources.index import is_media
from pipeline.sources.walk import walk_files

log = logging.getLogger(__name__)
KINDS = {
    ".tar": "tar",
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".zip": "zip",
    ".parquet": "parquet",
}
UNFINISHED = (".incomplete", ".part", ".crdownload", ".tmp")
"""File extensions of unfinished downloads."""
VERSION_KEYS: Sequence[str] = ("ETag", "etag", "blob_id", "mtime", "LastModified")
NUM_LISTERS = 16
MAX_WAITS = 5
"""Listing fails after this many throttled attempts."""
LIST_PAUSE_S, MAX_LIST_PAUSE_S = 5.0, 300.0
"""First and longest pause in seconds after a throttled attempt. The hub's limits apply per five minutes."""


@dataclass(frozen=True, slots=True)
class Container:
    """A file that contains many clips."""

    address: str
    kind: str
    num_bytes: int
    version: str
    """ETag, blob id or modification time. If the version changes, the container may have other clips."""
    location: str
    """Address to read from. For files on the hub, it includes the commit. For all other files, it equals `address`."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The containers and loose files in a folder, a prefix, a repository or a list of files."""

    containers: tuple[Container, ...]
    num_loose: int
    """Number of media files that are not in a container."""
    unfinished: tuple[str, ...]
    """Unfinished downloads, which are not read."""
    commits: tuple[tuple[str, str], ...] = ()
    """Roots of repositories on the hub, each paired with the same root at the commit to read."""

    @property
    def digest(self) -> str:
        """Digest of the versions of all containers."""
        return digest_of([[each.address, each.num_bytes, each.version] for each in self.containers])

    def describe(self) -> str:
        """Describe the copy in one line, such as `24 parquet, 2 tar (67.2 GB), 3 loose files`."""
        kinds = Counter(container.kind for container in self.containers)
        total = sum(container.num_bytes for container in self.containers)
        parts = [f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())} ({total / 1e9:.1f} GB)"]
        parts += [f"{self.num_loose} loose files"] if self.num_loose else []
        parts += [f"{len(self.unfinished)} unfinished downloads"] if self.unfinished else []
        return ", ".join(parts)


def kind_of(name: str) -> str | None:
    """Return the kind of a container according to its extension, or None if the file is not a container."""
    lower = PurePosixPath(name).name.lower()
    return next((kind for extension, kind in KINDS.items() if lower.endswith(extension)), None)


def list_copy(media: str) -> Copy:
    """List the containers in a folder, a prefix or repository (`s3://`, `hf://`), a file, or a pattern of files.

    `{000..123}` works everywhere. `*` and `**` only work where files can be listed. If the source throttles, the
    listing waits. Raises InputError if the listing fails, and SourceError if the source refuses access.
    """
    pauses = backoff(LIST_PAUSE_S, MAX_LIST_PAUSE_S)
    for num_left in reversed(range(MAX_WAITS)):
        try:
            return _list_copy(media)
        except (*READ_ERRORS, ValueError, ImportError) as error:
            check_access(media, error)
            throttling = throttling_of(error)
            if throttling is None or not num_left:
                raise InputError(f"can't list {media}: {describe(error)}") from error
            pause_s = min(throttling.retry_after_s or next(pauses), MAX_LIST_PAUSE_S)
            log.warning("%s throttles requests; listing it again in %.0f s", media, pause_s)
            time.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


def _list_copy(media: str) -> Copy:
    paths = list(braceexpand.braceexpand(media))
    # One pair per repository is enough, although a pattern may expand to thousands of paths.
    commits = (pin_commit(paths[0]),) if media.startswith(HUB) else ()
    for root, pinned in commits:
        paths = [path.replace(root, pinned, 1) for path in paths]
    found: dict[str, dict] = {}
    with ThreadPoolExecutor(NUM_LISTERS) as pool:
        for infos in pool.map(_find_files, paths):
            found |= infos
    names = {name: PurePosixPath(name).name for name in sorted(found)}
    visible = {name: last for name, last in names.items() if not last.startswith(".")}
    return Copy(
        tuple(_container(name, found[name], commits) for name, last in visible.items() if kind_of(last)),
        sum(is_media(last) for last in visible.values()),
        tuple(name for name, last in names.items() if last.endswith(UNFINISHED)),
        commits,
    )


def _find_files(path: str) -> dict[str, dict]:
    """Return the size and version of each file at a path, a prefix or a pattern, by address."""
    fs, local_path = fsspec.core.url_to_fs(path)
    if isinstance(fs, LocalFileSystem):
        infos = _find_local(fs, local_path)
    elif "*" in local_path:
        infos = fs.glob(local_path, detail=True)
    elif kind_of(local_path):
        infos = {local_path: fs.info(local_path)}
    else:
        infos = fs.find(local_path, detail=True)
    return {fs.unstrip_protocol(name): info for name, info in infos.items() if info["type"] == "file"}


def _find_local(fs: LocalFileSystem, path: str) -> dict[str, dict]:
    """Find local files and follow links. The hub's cache consists of links, and users combine several disks with
    links."""
    if "*" in path:
        found = [str(name) for name in fs.glob(path)]
    else:
        found = list(walk_files(path, with_hidden=True)) if Path(path).is_dir() else [path]
    infos: dict[str, dict] = {}
    for name in found:
        status = Path(name).stat()
        if stat.S_ISREG(status.st_mode):
            infos[name] = {"type": "file", "size": status.st_size, "mtime": status.st_mtime}
        elif kind_of(name) and not stat.S_ISDIR(status.st_mode):
            raise InputError(f"expected a regular file at {name}, found something else, such as a pipe")
    return infos


def _container(location: str, info: dict, commits: Sequence[tuple[str, str]]) -> Container:
    kind = kind_of(location)
    assert kind, "the caller passes containers only"
    version = next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
    # The names of listings and shards depend on the address. It excludes the commit, so that listings and shards of
    # unchanged files remain valid after a new commit.
    address = location
    for root, pinned in commits:
        address = address.replace(pinned, root, 1)
    return Container(address, kind, info.get("size") or 0, version, location)
