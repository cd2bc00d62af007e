"""Tag a stream of recordings.

A thread decodes recordings ahead of the model in bounded memory. Windows of several recordings share batches. On a CPU,
each core computes its own batches.

Axes: W windows, C classes, T frames, M mel bins, D embedding size.
"""

from array import array
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from itertools import islice, repeat, takewhile
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from ast_model.config import ASTConfig
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.ranking import TagCollector
from ast_model.tagging.scorer import WindowScorer
from ast_model.tagging.spectrogram import Spectrogram
from ast_model.tagging.windows import Window, WindowGrid, WindowMean, seconds_of_frames
from pipeline.ahead import map_ahead
from pipeline.audio.decode import DecodeError, stream_file
from pipeline.errors import AudioTaggingError, ConfigError, describe
from pipeline.fbank import stream_fbank
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.records import Failure, Reason


class Recording(Protocol):
    """A media file of any length."""

    @property
    def name(self) -> str: ...

    def open(self) -> AbstractContextManager[bytes | Path]: ...


@dataclass(frozen=True, eq=False)
class Tagged:
    """A recording with its tags."""

    name: str
    length_s: float
    tags: pd.DataFrame
    """Rows with the columns `ast_model.tagging.tables.COLUMNS`."""
    starts_s: np.ndarray
    """Start (W,) of each embedding's window; without a timeline, there is a single one."""
    embeddings_WD: np.ndarray
    spectrogram_TM: np.ndarray
    """Columns from `Spectrogram`; empty unless requested."""


@dataclass(frozen=True)
class Untagged:
    """A recording that could not be tagged, with the reason."""

    name: str
    failure: Failure


@dataclass(frozen=True, slots=True, eq=False)
class _DecodedWindow:
    window: Window
    fbank_TM: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    """Marks the end of a recording in the stream of windows."""

    name: str
    num_frames: int = 0
    failure: Failure | None = None
    spectrogram_TM: np.ndarray = field(default_factory=lambda: np.zeros((0, NUM_MEL_BINS), np.float32))


_Event = _DecodedWindow | _End
_Scored = tuple[list[_Event], Iterator[tuple[np.ndarray, np.ndarray]]]
"""A batch of events, with the scores and embeddings of its windows."""


def tag_recordings(
    scorer: WindowScorer, recordings: Iterable[Recording], options: TaggingOptions, with_spectrogram: bool = False
) -> Generator[Tagged | Untagged, None, None]:
    """Tag recordings in order. Yields an `Untagged` for each unreadable recording and continues."""
    grid = scorer.timeline_grid(options) if options.timeline else scorer.whole_grid
    events = (event for each in recordings for event in _read(each, grid, with_spectrogram))
    results = _Results(scorer, options, grid)
    with closing(_score_ahead(scorer, events)) as scored:
        for batch, outputs in scored:
            for event in batch:
                if isinstance(event, _DecodedWindow):
                    results.add(event.window, *next(outputs))
                else:
                    yield results.finish(event)
                    results = _Results(scorer, options, grid)


def _score_ahead(scorer: WindowScorer, events: Iterator[_Event]) -> Generator[_Scored, None, None]:
    """Decode in one thread, score batches in further threads, and yield the batches in order."""
    num_threads = torch.get_num_threads()
    num_models = num_threads if scorer.device.type == "cpu" else 1
    # A batch lasts as long as a default batch of 10 s windows. This bounds memory, and short windows stay cheap.
    batch_size = max(1, scorer.batch_size * ASTConfig.num_frames // scorer.model.config.num_frames // num_models)

    def score(batch: list[_Event]) -> _Scored:
        windows = [event.fbank_TM for event in batch if isinstance(event, _DecodedWindow)]
        return batch, iter(zip(*scorer.score_batch(windows), strict=True) if windows else ())

    # Give each core its own batches. Cores that share operations wait a sixth of the time for each other and for
    # decoding.
    read_ahead = map_ahead(lambda _: list(islice(events, batch_size)), repeat(None), 1, _use_one_thread)
    scored_ahead = map_ahead(score, takewhile(bool, read_ahead), num_models, _use_one_thread)
    with closing(read_ahead), closing(scored_ahead):
        try:
            yield from scored_ahead
        finally:
            torch.set_num_threads(num_threads)  # new threads inherit the most recent setting of any thread


def _use_one_thread() -> None:
    torch.set_num_threads(1)


class _Results:
    """Accumulates the results of one recording. For timelines, it stores only the best classes of each window."""

    def __init__(self, scorer: WindowScorer, options: TaggingOptions, grid: WindowGrid):
        self.is_timeline, self.grid = options.timeline, grid
        self.tags = TagCollector(scorer, options)
        self.mean_scores, self.mean_embedding = WindowMean(), WindowMean()
        self.starts_s, self.embeddings = array("d"), array("f")

    def add(self, window: Window, scores_C: np.ndarray, embedding_D: np.ndarray) -> None:
        if self.is_timeline:
            self.starts_s.append(window.start_s)
            self.embeddings.frombytes(embedding_D.tobytes())
            self.tags.add(window.start_s, scores_C)
        else:
            self.mean_scores.add(scores_C, window)
            self.mean_embedding.add(embedding_D, window)

    def finish(self, end: _End) -> Tagged | Untagged:
        if end.failure:
            return Untagged(end.name, end.failure)
        length_s = seconds_of_frames(end.num_frames)
        if self.is_timeline:
            starts_s, window_s = np.array(self.starts_s), self.grid.window_s
            embeddings_WD = np.array(self.embeddings).reshape(len(starts_s), -1)
        else:
            self.tags.add(0.0, self.mean_scores.mean())
            starts_s, window_s, embeddings_WD = np.zeros(1), length_s, self.mean_embedding.mean()[None]
        tags = self.tags.to_table(end.name, window_s, length_s)
        return Tagged(end.name, length_s, tags, starts_s, embeddings_WD, end.spectrogram_TM)


def _read(recording: Recording, grid: WindowGrid, with_spectrogram: bool) -> Iterator[_Event]:
    """Yield a recording's windows, then an `_End` with the error, if any."""
    spectrogram, num_frames = Spectrogram(), 0

    def observe(fbanks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        nonlocal num_frames
        for fbank_TM in fbanks:
            num_frames += len(fbank_TM)
            if with_spectrogram:
                spectrogram.add(fbank_TM.numpy())
            yield fbank_TM

    try:
        with recording.open() as content:
            for window, fbank_TM in grid.stream(observe(stream_fbank(stream_file(content)))):
                yield _DecodedWindow(window, fbank_TM.numpy())
    except ConfigError:
        raise
    except DecodeError as error:
        yield _End(recording.name, failure=Failure(error.reason, _one_line(error)))
    except AudioTaggingError as error:
        yield _End(recording.name, failure=Failure(Reason.CONNECTION, _one_line(error)))
    except Exception as error:  # one damaged file that crashes a library must not end a run over a million files
        yield _End(recording.name, failure=Failure(Reason.UNKNOWN, describe(error)))
    else:
        yield _End(recording.name, num_frames, spectrogram_TM=spectrogram.columns_TM)


def _one_line(error: AudioTaggingError) -> str:
    """Return the message as one line of valid UTF-8, which the bytes of a path may not be."""
    return " ".join(str(error).split()).encode(errors="backslashreplace").decode()
