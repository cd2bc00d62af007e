"""Media from a folder, local or `s3://`, in the naming schemes that are in use."""

from functools import cached_property
from pathlib import PurePosixPath

from pipeline.config import FetchConfig
from pipeline.errors import InputError, StoreError
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.storage import Store

EXTENSIONS = frozenset("aac aif aiff avi flac m4a mka mkv mp3 mp4 mov oga ogg opus wav webm wma".split())


class FolderSource:
    """Finds `{ytid}.*`, `Y{ytid}.*`, `id_{ytid}.*` and `{ytid}_{start}.*` (in seconds or ms) at any depth.

    Names with a start, and those with `Y` (PANNs) or `id_` before them, hold the segment alone; `{ytid}.*` holds the
    whole video unless `already_cut`.
    """

    def __init__(self, folder: str, config: FetchConfig, *, already_cut: bool = False):
        self.store = Store(folder)
        self.config = config
        self.already_cut = already_cut

    @cached_property
    def _name_of_stem(self) -> dict[str, str]:
        names = (name for name in self.store.list("") if PurePosixPath(name).suffix[1:].lower() in EXTENSIONS)
        found = {PurePosixPath(name).stem: name for name in names}
        if not found:
            raise InputError(
                f"expected media files named by their id, such as --PJHxphWEs.flac, in {self.store.root}; found none"
            )
        return found

    def fetch(self, segment: Segment) -> Media | Failure:
        ytid, start_ms = segment.ytid, segment.start_ms
        cut_stems = (f"{ytid}_{start_ms}", f"{ytid}_{start_ms / 1000:g}", f"Y{ytid}", f"id_{ytid}")
        for stem in (*cut_stems, ytid):
            if name := self._name_of_stem.get(stem):
                is_cut = self.already_cut or stem != ytid
                return self._open(name, offset_ms=start_ms if is_cut else 0)
        return Failure(Reason.NOT_FOUND, f"no file named {ytid}.* in {self.store.root}")

    def _open(self, name: str, offset_ms: int) -> Media | Failure:
        try:
            num_bytes = self.store.size(name)
            if num_bytes > self.config.max_media_bytes:
                limit = self.config.max_media_bytes
                return Failure(Reason.TOO_LARGE, f"{name}: {num_bytes} bytes, the limit is {limit}")
            content = self.store.path(name) if self.store.is_local else self.store.read_bytes(name)
        except StoreError as error:
            return Failure(Reason.CONNECTION, str(error))
        return Media(content, source=self.store.url(name), offset_ms=offset_ms)
