"""Media from a folder, local or `s3://`, in the naming schemes that are in use."""

from pathlib import Path

from pipeline.config import FetchConfig
from pipeline.errors import InputError, StoreError, describe
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.sources.index import MediaEntry, MediaIndex
from pipeline.store.storage import Store


class FolderSource:
    """Media files by name, at any depth. `{ytid}.*` holds the whole video unless `already_cut`."""

    def __init__(self, folder: str, config: FetchConfig, *, already_cut: bool = False):
        try:
            folder.encode()
        except UnicodeEncodeError as error:  # its name would go into sidecars
            raise InputError(f"expected a folder whose name is UTF-8, found {describe(error)}; rename it") from error
        self.store = Store(folder)
        self.config = config
        self.already_cut = already_cut
        entries = (MediaEntry.of(name, name) for name in self.store.list(""))
        self.index = MediaIndex(entry for entry in entries if entry)
        if not len(self.index):
            raise InputError(
                f"expected media files named by their id, such as --PJHxphWEs.flac, in {folder}; found none"
            )

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        found = self.index.find(segment)
        if found is None:
            return Failure(Reason.NOT_FOUND, f"no file named {segment.ytid}.* in {self.store.root}")
        entry, is_cut = found
        return self._open(entry.file, offset_ms=segment.start_ms if is_cut or self.already_cut else 0)

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
