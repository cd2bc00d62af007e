"""A copy of AudioSet → the containers that it consists of: tars, zips and parquet files."""

import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import braceexpand
import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputError, describe
from pipeline.shards.format import digest_of
from pipeline.sources.archives import READ_ERRORS
from pipeline.sources.index import is_media
from pipeline.sources.walk import walk_files

KINDS = {
    ".tar": "tar",
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".zip": "zip",
    ".parquet": "parquet",
}
UNFINISHED = (".incomplete", ".part", ".crdownload", ".tmp")
"""Extensions of interrupted downloads."""


@dataclass(frozen=True, slots=True)
class Container:
    """A file that holds many clips."""

    address: str
    kind: str
    num_bytes: int
    version: str
    """ETag, blob id, or modification time: another version may hold other clips."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The content of a folder, prefix, repository or list of files."""

    containers: tuple[Container, ...]
    num_loose: int
    """Media files beside the containers."""
    unfinished: tuple[str, ...]
    """Interrupted downloads, which are not read."""

    @property
    def digest(self) -> str:
        """Digest of the containers' versions."""
        return digest_of([[each.address, each.num_bytes, each.version] for each in self.containers])

    def describe(self) -> str:
        """Return one line: `24 parquet, 2 tar (67.2 GB), 3 loose files`."""
        kinds = Counter(container.kind for container in self.containers)
        total = sum(container.num_bytes for container in self.containers)
        parts = [f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())} ({total / 1e9:.1f} GB)"]
        parts += [f"{self.num_loose} loose files"] if self.num_loose else []
        parts += [f"{len(self.unfinished)} unfinished downloads"] if self.unfinished else []
        return ", ".join(parts)


def kind_of(name: str) -> str | None:
    """Return a file's kind of container by its extension, None for any other file."""
    lower = PurePosixPath(name).name.lower()
    return next((kind for extension, kind in KINDS.items() if lower.endswith(extension)), None)


def list_copy(media: str) -> Copy:
    """List the containers of a folder, a prefix or repository (`s3://`, `hf://`), a file, or a pattern of files.

    `{000..123}` expands anywhere; `*` and `**` where files can be listed. Raises InputError if listing fails.
    """
    found: dict[str, dict] = {}
    try:
        for path in braceexpand.braceexpand(media):
            fs, local_path = fsspec.core.url_to_fs(path)
            if isinstance(fs, LocalFileSystem):
                infos = _find_local(fs, local_path)
            elif "*" in local_path:
                infos = fs.glob(local_path, detail=True)
            elif kind_of(local_path):
                infos = {local_path: fs.info(local_path)}
            else:
                infos = fs.find(local_path, detail=True)
            found |= {fs.unstrip_protocol(name): info for name, info in infos.items() if info["type"] == "file"}
    except (*READ_ERRORS, ValueError, ImportError) as error:
        raise InputError(f"can't list {media}: {describe(error)}") from error
    names = {name: PurePosixPath(name).name for name in sorted(found)}
    visible = {name: last for name, last in names.items() if not last.startswith(".")}
    return Copy(
        tuple(_container(name, found[name]) for name, last in visible.items() if kind_of(last)),
        sum(is_media(last) for last in visible.values()),
        tuple(name for name, last in names.items() if last.endswith(UNFINISHED)),
    )


def _find_local(fs: LocalFileSystem, path: str) -> dict[str, dict]:
    """Find local files, also through links: the hub's cache consists of links, and people link disks into folders."""
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


def _container(address: str, info: dict) -> Container:
    kind = kind_of(address)
    assert kind, "the caller passes containers only"
    version = next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
    return Container(address, kind, info.get("size") or 0, version)


VERSION_KEYS: Sequence[str] = ("ETag", "etag", "blob_id", "mtime", "LastModified")
