"""Find or download the official folders of published data sets, and read them."""

import pkgutil
from collections.abc import Sequence
from pathlib import Path

from jobs.datasets.settings import DatasetConfig
from pipeline.recordings.download import fetch_archive, unpack
from pipeline.recordings.tables import LabelledClip
from pipeline.store.storage import Store


def read_dataset(config: DatasetConfig, store: Store) -> tuple[Sequence[LabelledClip], Sequence[str]]:
    """Return the official folder's labelled clips and classes. Downloads it first if `config.data` is empty."""
    folder = Path(config.data) if config.data else _fetch_dataset(config, download_folder(store))
    return pkgutil.resolve_name(config.dataset.reader)(folder)


def download_folder(store: Store) -> Path:
    """Return the folder for downloaded archives, in a local store or else in the user's cache."""
    return Path(store.path("download")) if store.is_local else Path.home() / ".cache/audioset-ast"


def _fetch_dataset(config: DatasetConfig, home: Path) -> Path:
    """Download a data set and unpack it below `home`. Returns the official folder."""
    if config.dataset.fetcher:
        return pkgutil.resolve_name(config.dataset.fetcher)(config.archive, home)
    archive = fetch_archive(config.archive, home / config.archive.rsplit("/", 1)[-1], config.digest)
    folder, marker = unpack(archive, home / config.dataset.name), config.dataset.marker
    return next((found.parents[marker.count("/")] for found in folder.rglob(marker)), folder)
