"""Serve media files from a local folder or an `s3://` prefix."""

import hashlib
from pathlib import Path

from pipeline.config import FetchConfig
from pipeline.errors import InputError, StoreError, describe
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.sources.index import MediaIndex
from pipeline.sources.names import compile_pattern
from pipeline.sources.walk import walk_files
from pipeline.store.storage import Store


class FolderSource:
    """A source of media files in a folder, at any depth. The files are named by id.

    `{ytid}.*` contains the whole video unless `already_cut` is set. Files with a prefix or a start in their name only
    contain the segment.
    """

    def __init__(self, folder: str, config: FetchConfig, *, already_cut: bool = False, id_pattern: str = ""):
        try:
            folder.encode()
        except UnicodeEncodeError as error:  # sidecars store the name as UTF-8
            raise InputError(f"expected a folder whose name is UTF-8, found {describe(error)}; rename it") from error
        self.store = Store(folder)
        self.config = config
        self.already_cut = already_cut
        self.index = MediaIndex(self._list_files(), compile_pattern(id_pattern))
        if not len(self.index):
            raise InputError(f"expected media files named by id, such as --PJHxphWEs.flac, in {folder}; found none")

    def _list_files(self) -> list[str]:
        if not self.store.is_local:
            return self.store.list("")
        base = self.store.base
        return [path[len(base) + 1 :] for path in walk_files(base)]

    @property
    def digest(self) -> str:
        """Digest of all file names. It changes if files are added, removed or renamed."""
        return hashlib.sha256("\n".join(self.index.table["file"].to_pylist()).encode()).hexdigest()

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        found = self.index.find(segment)
        if found is None:
            return Failure(Reason.MISSING_IN_SOURCE, f"no file named {segment.ytid}.* in {self.store.root}")
        file, is_cut = found
        return self._open(file, offset_ms=segment.start_ms if is_cut or self.already_cut else 0)

    def _open(self, name: str, offset_ms: int) -> Media | Failure:
        try:
            num_bytes = self.store.size(name)
            if num_bytes > self.config.max_media_bytes:
                limit = self.config.max_media_bytes
                return Failure(Reason.TOO_LARGE, f"{name}: {num_bytes} bytes, the limit is {limit}")
            content = Path(self.store.path(name)) if self.store.is_local else self.store.read_bytes(name)
        except StoreError as error:
            return Failure(Reason.CONNECTION, str(error))
        return Media(content, source=self.store.url(name), offset_ms=offset_ms)
