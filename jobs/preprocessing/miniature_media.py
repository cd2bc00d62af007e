"""Provide the demo's media, served on loopback or copied into the store for workers on other hosts."""

import logging
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.cluster.session import ray_session, spans_hosts
from pipeline.config import PreprocessConfig
from pipeline.miniature import Miniature, make_miniature, serve_miniature
from pipeline.progress import show_progress
from pipeline.store.layout import MINIATURE, MINIATURE_MEDIA
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

NUM_UPLOADS = 16
"""Concurrent uploads to a remote store."""


@contextmanager
def with_miniature_media(data: PreprocessConfig, store: Store) -> Iterator[PreprocessConfig]:
    """If `data.metadata` is `miniature`, make it and yield settings with its media. Otherwise yield `data`."""
    if data.metadata != MINIATURE:
        yield data
        return
    home = Path(store.path("")) if store.is_local else Path(tempfile.gettempdir())
    with show_progress("make the miniature", 1, "clips") as progress:
        miniature = make_miniature(home / MINIATURE, on_progress=progress.reach)
    data = replace(data, metadata=str(miniature.metadata_folder))
    if data.media:
        yield data
    elif os.environ.get("RAY_ADDRESS"):
        with ray_session(), _media_for_cluster(miniature, store) as address:
            yield replace(data, media=(address,))
    else:
        with serve_miniature(miniature.folder) as server:
            yield replace(data, media=(server.media_address,))


@contextmanager
def _media_for_cluster(miniature: Miniature, store: Store) -> Iterator[str]:
    """Yield an address of the media that all workers of the cluster can read."""
    if spans_hosts():
        yield copy_media(miniature, store)
    else:
        with serve_miniature(miniature.folder) as server:
            yield server.media_address


def copy_media(miniature: Miniature, store: Store) -> str:
    """Return the folder of the media in the store. Uploads missing files to a remote store."""
    address = store.url(MINIATURE_MEDIA)
    log.info("workers on other hosts read the media from %s, so the planned faults of the server don't occur", address)
    if store.is_local:
        return address
    stored = set(store.list(MINIATURE_MEDIA))
    files = {f"{MINIATURE_MEDIA}/{file.name}": file for file in sorted(miniature.media_folder.iterdir())}
    missing = {name: file for name, file in files.items() if name not in stored}
    with (
        show_progress("upload the miniature", len(missing), "clips") as progress,
        ThreadPoolExecutor(NUM_UPLOADS) as pool,
    ):
        for _ in pool.map(lambda name: store.write_bytes(name, missing[name].read_bytes()), missing):
            progress.advance(1)
    return address
