"""The VGGSound command. Converts VGGSound's table to AudioSet's format, and runs the main job."""

import dataclasses
import tempfile
from pathlib import Path

from jobs.command_line.cli import resolve_root
from jobs.datasets.official import download_folder
from jobs.datasets.settings import VGGSoundConfig
from jobs.training.audioset import audioset
from jobs.training.settings import AudioSetConfig
from pipeline.recordings.download import fetch_archive
from pipeline.recordings.vggsound import read_vggsound, write_audioset_tables
from pipeline.store.storage import Store


def vggsound(config: VGGSoundConfig) -> None:
    """Write tables in AudioSet's format, then preprocess missing clips, train and report like the main job."""
    store = Store(resolve_root(config.root))
    table = Path(config.table)
    if not config.table:
        table = fetch_archive(config.archive, download_folder(store) / "vggsound.csv", config.digest)
    folder = Path(store.path("tables") if store.is_local else tempfile.mkdtemp())
    write_audioset_tables(read_vggsound(table), folder)
    data = dataclasses.replace(config.data, metadata=str(folder))
    settings = {
        name: getattr(config, name) for name in ("preset", "root", "model", "train", "ray", "resume", "selection")
    }
    audioset(AudioSetConfig(data=data, **settings))
