"""Find recordings in files, folders, S3 prefixes, tars and lists, and open them one at a time."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec

from pipeline.audio.container import EXTENSIONS
from pipeline.errors import InputError, StoreError, describe, describe_storage_error
from pipeline.sources.archives import READ_ERRORS, find_files, list_tar
from pipeline.sources.index import is_hidden, is_media
from pipeline.sources.walk import walk_files

PIECE_BYTES = 32 * 2**20
LIST, TAR = ".txt", ".tar"


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A media file, either on its own or in a tar."""

    name: str
    """Name of the recording in the results."""
    file: str
    """Path or address of the file, or of the tar that contains it."""
    offset: int = 0
    size: int | None = None
    """Size in bytes of a member of a tar. None for a file on its own."""
    blocks: tuple[tuple[int, int], ...] = ()
    """Stored blocks of a sparse member of a tar, as in `Member`."""

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Provide the recording as a local file. If it is in a tar or in remote storage, it is copied to a temporary
        folder.

        The recording is copied in small pieces, because it may be larger than the memory. Raises StoreError if it can't
        be read.
        """
        if "://" not in self.file and self.size is None:
            yield Path(self.file)
            return
        with tempfile.TemporaryDirectory(prefix="recording-") as folder:
            copy = Path(folder) / "media"
            try:
                fs, path = fsspec.core.url_to_fs(self.file)
                if self.size is None:
                    fs.get_file(path, str(copy))
                else:
                    self._copy_member(fs, path, copy)
            except READ_ERRORS as error:
                raise StoreError(f"can't read {self.name}: {describe_storage_error(error)}") from error
            yield copy

    def _copy_member(self, fs: fsspec.AbstractFileSystem, path: str, copy: Path) -> None:
        assert self.size is not None
        start, num_copied = self.offset, 0
        blocks = self.blocks or ((0, self.size),)
        with copy.open("wb") as out:
            for position, num_bytes in blocks:
                out.seek(position)
                for piece_start in range(start, start + num_bytes, PIECE_BYTES):
                    piece = fs.cat_file(path, start=piece_start, end=min(piece_start + PIECE_BYTES, start + num_bytes))
                    assert isinstance(piece, bytes), "fsspec's cat_file returns bytes"
                    num_copied += out.write(piece)
                start += num_bytes
            out.truncate(self.size)
        if num_copied != sum(num_bytes for _, num_bytes in blocks):
            raise OSError(f"{num_copied} of {sum(num_bytes for _, num_bytes in blocks)} bytes")


def list_media_files(paths: Iterable[str]) -> Iterator[MediaFile]:
    """Yield the recordings at paths and addresses. Raises InputError if there is no audio at one of them.

    Folders and s3:// prefixes are searched recursively, and tars are listed without unpacking them. A `.txt` file
    contains one path or address per line. Its paths are relative to the folder of the file.
    """
    for path in paths:
        if path.endswith(LIST):
            yield from list_media_files(_read_list(Path(path)))
        elif path.endswith(TAR):
            for file in find_files(path):
                tar = file.removeprefix("file://")
                yield from (
                    MediaFile(f"{tar}/{each.name}", tar, each.offset, each.size, each.blocks) for each in list_tar(tar)
                )
        elif "://" in path and not is_media(path):
            yield from (MediaFile(name, name) for name in _list_prefix(path))
        elif "://" in path:
            yield MediaFile(path, path)
        else:
            yield from (MediaFile(_storable(name), str(Path(name).absolute())) for name in find_audio((path,)))


def _storable(name: str) -> str:
    """Escape bytes that are not UTF-8. Python represents them as surrogates, which Arrow tables can't store."""
    return name.encode(errors="backslashreplace").decode()


def find_audio(paths: Iterable[str]) -> Iterator[str]:
    """Yield files unchanged, and the media files in folders in sorted order. Raises InputError if a folder has no
    audio."""
    for path in paths:
        if not Path(path).is_dir():
            yield path
            continue
        names = sorted(filter(is_media, walk_files(path)))
        if not names:
            raise _no_audio(path)
        yield from names


def _list_prefix(address: str) -> list[str]:
    try:
        fs, prefix = fsspec.core.url_to_fs(address)
        found = sorted(fs.unstrip_protocol(name) for name in fs.find(prefix) if is_media(name) and not is_hidden(name))
    except (*READ_ERRORS, ValueError, ImportError) as error:
        raise InputError(f"can't list {address}: {describe_storage_error(error)}") from error
    if not found:
        raise _no_audio(address)
    return found


def _read_list(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read the list of recordings {file}: {describe(error)}") from error
    if not lines:
        raise InputError(f"expected one path or address per line in {file}, found none")
    if lists := [line for line in lines if line.endswith(LIST)]:
        raise InputError(f"expected recordings in the list {file}, but it contains the list {lists[0]}")
    return [line if "://" in line else str(file.parent / line) for line in lines]


def _no_audio(where: str) -> InputError:
    return InputError(f"expected audio files in {where}, found none ({', '.join(sorted(EXTENSIONS))})")
