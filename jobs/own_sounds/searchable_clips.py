"""Collect clips to search by sound from a store or from windows of files, with embeddings and audio."""

import difflib
import io
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ast_model.data.augment import Normalisation
from ast_model.embeddings.extract import find_missing, plan_statistics, read_embeddings
from ast_model.embeddings.statistics import spectral_statistics
from ast_model.inference import Tagger
from ast_model.tagging.windows import Window, WindowGrid
from jobs.command_line.cli import resolve_root
from jobs.own_sounds.embedding import compute_embeddings, embed_snapshot
from jobs.own_sounds.settings import SearchConfig
from pipeline.audio.decode import decode_file
from pipeline.errors import AudioTaggingError, InputError, quote
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import FRAME_LENGTH_MS, FRAME_SHIFT_MS, SAMPLE_RATE_HZ
from pipeline.progress import show_progress
from pipeline.reading.reader import ClipReader
from pipeline.recordings.tables import MEDIA_TABLE
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint, load_snapshot
from pipeline.sources.listing import find_audio
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

STATISTICS_FRAMES = 1_024
"""Window length in frames for spectral statistics of files, about ten seconds."""


@dataclass(frozen=True)
class SearchableClips:
    """Clips with their embeddings and audio, one per row.

    Columns of the table: `clip`, `file` (empty if unknown), `start_s`, `end_s`, `split`, `labels`.
    """

    table: pd.DataFrame
    embeddings_ND: np.ndarray
    read_waveform: Callable[[int], np.ndarray | None]
    """Function that returns the waveform (S,) of a row, or None if the audio is not available."""


@dataclass(frozen=True)
class FileEmbedder:
    """Embeds windows of files with a model or with spectral statistics."""

    read_fbank: Callable[[str], np.ndarray]
    grid: WindowGrid
    embed: Callable[[np.ndarray, list[Window]], np.ndarray]
    """Function from a file's features (T, M) and windows to embeddings (W, D)."""

    @classmethod
    def of(cls, tagger: Tagger | None) -> "FileEmbedder":
        """Create an embedder for a model or, for None, for spectral statistics of ten seconds."""
        if tagger:
            scorer = tagger.scorer
            return cls(tagger.fbank, scorer.whole_grid, lambda fbank, windows: scorer.score_windows(fbank, windows)[1])
        return cls(_compute_fbank, WindowGrid.without_overlap(STATISTICS_FRAMES), _statistics_of_windows)


def _compute_fbank(file: str) -> np.ndarray:
    return compute_fbank(torch.from_numpy(decode_file(Path(file)))).numpy()


def _statistics_of_windows(fbank_TM: np.ndarray, windows: list[Window]) -> np.ndarray:
    return np.stack([spectral_statistics(fbank_TM[window.start : window.stop]) for window in windows])


def embed_store(tagger: Tagger | None, config: SearchConfig) -> SearchableClips:
    """Return the clips of a snapshot with embeddings or, without a model, spectral statistics.

    Raises InputError if `--label` names a class without clips.
    """
    store = Store(resolve_root(config.root))
    snapshot = load_snapshot(store, config.snapshot or None)
    check_fingerprint(snapshot)
    names = snapshot.labels.names
    counts = snapshot.class_counts(tuple(set(snapshot.splits)))
    if config.label and config.label not in {names[column] for column in np.flatnonzero(counts)}:
        close = difflib.get_close_matches(config.label, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"expected clips of the class {quote(config.label)} in {store.root}, found none{hint}")
    if tagger:
        plan = embed_snapshot(snapshot, tagger.model, Normalisation(tagger.metadata.mean, tagger.metadata.std))
    else:
        plan = plan_statistics(snapshot)
        compute_embeddings(plan, snapshot, find_missing(plan, snapshot))
    index = snapshot.index
    keys = index["key"].to_pylist()
    start_s = np.array([int(key.rpartition("_")[2]) for key in keys]) / 1000
    clips = [key.rpartition("_")[0] for key in keys]
    files = _files_of_clips(store)
    table = pd.DataFrame(
        {
            "clip": clips,
            "file": [files.get(clip, "") for clip in clips],
            "start_s": start_s,
            "end_s": start_s + _seconds_of(index["num_frames"].to_numpy()),
            "split": snapshot.splits,
            "labels": [[names[column] for column in columns] for columns in index["labels"].to_pylist()],
        }
    )
    return SearchableClips(table, read_embeddings(plan, snapshot), _reader_of_store(snapshot, table))


def _reader_of_store(snapshot: Snapshot, table: pd.DataFrame) -> Callable[[int], np.ndarray | None]:
    """Return a function that reads a clip's audio from its shard if stored, else from the original file."""
    reader = ClipReader(snapshot)
    has_audio = snapshot.index["audio_length"].to_numpy() > 0

    def read(row: int) -> np.ndarray | None:
        if has_audio[row]:
            return reader.read_audio(row).astype(np.float32) / 32768
        path = Path(table["file"][row])
        return _cut(path, table["start_s"][row], table["end_s"][row]) if path.is_file() else None

    return read


def _files_of_clips(store: Store) -> dict[str, str]:
    """Return the original file of each clip id; empty for a store without a table of local files."""
    name = f"tables/{MEDIA_TABLE}"
    if not store.exists(name):
        return {}
    media = pd.read_csv(io.BytesIO(store.read_bytes(name)), dtype=str)
    return dict(zip(media["id"], media["path"], strict=True))


def _seconds_of(num_frames: np.ndarray) -> np.ndarray:
    """Return the seconds of audio that these complete frames cover."""
    return ((num_frames - 1) * FRAME_SHIFT_MS + FRAME_LENGTH_MS) / 1000


def embed_files(tagger: Tagger | None, paths: tuple[str, ...]) -> SearchableClips:
    """Embed files in windows of the model's length. Unreadable files are skipped with a warning."""
    embedder, rows, parts = FileEmbedder.of(tagger), [], []
    files, window_s = list(find_audio(paths)), embedder.grid.window_s
    with show_progress("embed", len(files), "files") as progress:
        for file in files:
            try:
                fbank_TM = embedder.read_fbank(file)
            except AudioTaggingError as error:
                log.warning("skipped %s", error)
            else:
                windows = embedder.grid.cut(len(fbank_TM))
                for window in windows:
                    end_s = min(window.start_s + window_s, float(_seconds_of(np.array(len(fbank_TM)))))
                    rows.append((Path(file).stem, file, window.start_s, end_s, "", ()))
                parts.append(embedder.embed(fbank_TM, windows))
            progress.advance(1)
    if not parts:
        raise InputError(f"expected audio in {', '.join(paths)[:200]}, found none in {len(files)} files")
    table = pd.DataFrame(rows, columns=pd.Index(["clip", "file", "start_s", "end_s", "split", "labels"]))
    return SearchableClips(
        table, np.concatenate(parts), lambda row: _cut(Path(rows[row][1]), rows[row][2], rows[row][3])
    )


def _cut(file: Path, start_s: float, end_s: float) -> np.ndarray:
    return decode_file(file)[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]


def take_clips(clips: SearchableClips, rows: np.ndarray) -> SearchableClips:
    """Return the clips of the given rows."""
    table = clips.table.iloc[rows].reset_index(drop=True)
    return SearchableClips(table, clips.embeddings_ND[rows], lambda row: clips.read_waveform(int(rows[row])))


def skip_files(clips: SearchableClips, paths: Iterable[str]) -> SearchableClips:
    """Drop the clips of some files, so that no example is its own neighbour."""
    skipped = {str(Path(path).resolve()) for path in paths}
    is_skipped = np.array([str(Path(file).resolve()) in skipped for file in clips.table["file"]], bool)
    return take_clips(clips, np.flatnonzero(~is_skipped)) if is_skipped.any() else clips


def standardise(examples: SearchableClips, searched: SearchableClips) -> tuple[SearchableClips, SearchableClips]:
    """Scale each feature to mean 0 and deviation 1 over all clips, because statistics have different units."""
    values_ND = np.concatenate([examples.embeddings_ND, searched.embeddings_ND])
    mean_D, std_D = values_ND.mean(axis=0), values_ND.std(axis=0)
    scale_D = np.where(std_D > 0, std_D, 1.0)
    first, second = (
        replace(clips, embeddings_ND=(clips.embeddings_ND - mean_D) / scale_D) for clips in (examples, searched)
    )
    return first, second
