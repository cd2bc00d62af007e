"""Tag many recordings. Streams are decoded ahead of the model in bounded memory, and windows of several recordings
share batches. On a CPU each core computes its own batches.

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
from ast_model.inference import Tagger, stream_windows
from ast_model.review import COLUMNS, best_classes
from pipeline.ahead import map_ahead
from pipeline.audio.decode import DecodeError, stream_file
from pipeline.errors import AudioTaggingError, ConfigError, describe
from pipeline.fbank import stream_fbank
from pipeline.fbank_settings import FRAME_LENGTH_MS, FRAME_SHIFT_MS, FRAMES_PER_S, NUM_MEL_BINS
from pipeline.records import Failure, Reason

MAX_COLUMNS = 2_048
"""Maximum columns of a recording's spectrogram."""


class Recording(Protocol):
    """A media file to tag."""

    @property
    def name(self) -> str: ...

    def open(self) -> AbstractContextManager[bytes | Path]: ...


@dataclass(frozen=True)
class TagSettings:
    """Requested results per recording."""

    top_k: int = 5
    timeline: bool = False
    """Tag windows instead of the whole recording."""
    window_s: float | None = None
    hop_s: float | None = None
    spectrogram: bool = False


@dataclass(frozen=True, eq=False)
class Tagged:
    """A recording with its tags."""

    name: str
    length_s: float
    tags: pd.DataFrame
    """Columns of `ast_model.review`."""
    starts_s: np.ndarray
    """Starts (W,) of the windows of the embeddings; a single one without a timeline."""
    embeddings_WD: np.ndarray
    spectrogram_TM: np.ndarray
    """Features of the whole recording, averaged over several frames for long ones; empty unless requested."""


@dataclass(frozen=True)
class Untagged:
    """A recording that could not be tagged, and why."""

    name: str
    failure: Failure


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    start: int
    fbank_TM: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    """Marks the end of a recording in the stream of windows."""

    name: str
    num_frames: int = 0
    failure: Failure | None = None
    spectrogram_TM: np.ndarray = field(default_factory=lambda: np.zeros((0, NUM_MEL_BINS), np.float32))


def tag_recordings(
    tagger: Tagger, recordings: Iterable[Recording], settings: TagSettings
) -> Generator[Tagged | Untagged, None, None]:
    """Tag recordings in order. An unreadable recording yields an `Untagged` and does not stop the others."""
    window = tagger.num_window_frames(settings.window_s)
    hop = tagger.num_hop_frames(window, settings.hop_s) if settings.timeline else window
    results = _Results(tagger, settings, window)
    events = (event for each in recordings for event in _read(each, window, hop, settings.spectrogram))
    num_threads = torch.get_num_threads()
    num_models = num_threads if tagger.device.type == "cpu" else 1
    # Batches of all cores together hold as much sound as one batch of 10 s windows. This bounds memory and keeps short
    # windows cheap.
    batch_size = max(1, tagger.batch_size * ASTConfig.num_frames // tagger.model.config.num_frames // num_models)

    def run(batch: list[_Window | _End]) -> tuple[list[_Window | _End], Iterator[tuple[np.ndarray, np.ndarray]]]:
        windows = [event.fbank_TM for event in batch if isinstance(event, _Window)]
        return batch, iter(zip(*tagger.run_windows(windows), strict=True) if windows else ())

    # Cores that share each operation wait for each other and for the decoding core, a sixth of the time.
    read_ahead = map_ahead(lambda _: list(islice(events, batch_size)), repeat(None), 1, _use_one_thread)
    run_ahead = map_ahead(run, takewhile(bool, read_ahead), num_models, _use_one_thread)
    with closing(read_ahead), closing(run_ahead):
        try:
            for batch, outputs in run_ahead:
                for event in batch:
                    if isinstance(event, _Window):
                        results.add(event, *next(outputs))
                    else:
                        yield results.finish(event)
        finally:
            torch.set_num_threads(num_threads)  # for new threads, which inherit the most recent setting of any thread


def _use_one_thread() -> None:
    torch.set_num_threads(1)


class _Results:
    """Accumulates a recording's results. Timelines store only the best classes."""

    def __init__(self, tagger: Tagger, settings: TagSettings, window: int):
        self.tagger, self.settings = tagger, settings
        self.window_s = settings.window_s or window / FRAMES_PER_S
        calibration = tagger.calibration
        self.thresholds = np.zeros(len(tagger.labels)) if calibration is None else np.asarray(calibration.thresholds)
        self._clear()

    def _clear(self) -> None:
        # Flat arrays. An object per window would fragment the memory between the model's large buffers: hundreds of MB
        # per hour.
        self.starts_s, self.num_filled, self.embeddings = array("d"), array("q"), array("f")
        self.tag_starts_s, self.tag_classes, self.tag_scores = array("d"), array("q"), array("f")
        self.score_sum_C = np.zeros(len(self.tagger.labels))

    def add(self, window: _Window, scores_C: np.ndarray, embedding_D: np.ndarray) -> None:
        self.starts_s.append(window.start / FRAMES_PER_S)
        self.num_filled.append(len(window.fbank_TM))
        self.embeddings.frombytes(embedding_D.tobytes())
        if self.settings.timeline:
            self._rank(scores_C, self.starts_s[-1])
        else:
            self.score_sum_C += scores_C * len(window.fbank_TM)

    def _rank(self, scores_C: np.ndarray, start_s: float) -> None:
        calibrated_C = self.tagger.calibrate(scores_C[None])[0]
        best = best_classes(calibrated_C, self.settings.top_k, self.thresholds)
        self.tag_starts_s.extend([start_s] * len(best))
        self.tag_classes.extend(best.tolist())
        self.tag_scores.extend(calibrated_C[best].tolist())

    def finish(self, end: _End) -> Tagged | Untagged:
        try:
            return Untagged(end.name, end.failure) if end.failure else self._tagged(end)
        finally:
            self._clear()

    def _tagged(self, end: _End) -> Tagged:
        length_s = (FRAME_LENGTH_MS + (end.num_frames - 1) * FRAME_SHIFT_MS) / 1000
        starts_s, window_s = np.array(self.starts_s), self.window_s
        embeddings_WD = np.array(self.embeddings).reshape(len(starts_s), -1)
        if not self.settings.timeline:
            # Pool like `Tagger.scores`, weighted by the filled share of each window.
            self._rank((self.score_sum_C / sum(self.num_filled)).astype(np.float32), 0.0)
            pooled_D = np.average(embeddings_WD, axis=0, weights=self.num_filled).astype(np.float32)
            starts_s, embeddings_WD, window_s = starts_s[:1], pooled_D[None], length_s
        tag_starts_s = np.array(self.tag_starts_s)
        columns = {
            "file": [end.name] * len(tag_starts_s),
            "start_s": tag_starts_s,
            "end_s": np.minimum(tag_starts_s + window_s, length_s),
            "label": [self.tagger.labels[c] for c in self.tag_classes],
            "score": np.array(self.tag_scores, dtype=float),
        }
        tags = pd.DataFrame(columns, columns=pd.Index(COLUMNS))
        return Tagged(end.name, length_s, tags, starts_s, embeddings_WD, end.spectrogram_TM)


def _read(recording: Recording, window: int, hop: int, with_spectrogram: bool) -> Iterator["_Window | _End"]:
    """Yield a recording's windows, then its end with an error, if any."""
    overview = Overview()
    num_frames = 0

    def count(fbanks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        nonlocal num_frames
        for fbank_TM in fbanks:
            num_frames += len(fbank_TM)
            if with_spectrogram:
                overview.add(fbank_TM.numpy())
            yield fbank_TM

    try:
        with recording.open() as content:
            for start, window_TM in stream_windows(count(stream_fbank(stream_file(content))), window, hop):
                yield _Window(start, window_TM.numpy())
    except ConfigError:
        raise
    except DecodeError as error:
        yield _End(recording.name, failure=Failure(error.reason, _one_line(error)))
    except AudioTaggingError as error:
        yield _End(recording.name, failure=Failure(Reason.CONNECTION, _one_line(error)))
    except (
        Exception
    ) as error:  # foreign files trigger unforeseen errors in any library, and one file must not end a million
        yield _End(recording.name, failure=Failure(Reason.UNKNOWN, describe(error)))
    else:
        yield _End(recording.name, num_frames, spectrogram_TM=overview.columns_TM)


def _one_line(error: AudioTaggingError) -> str:
    """Return a storable one-line message, since paths may contain bytes that are not UTF-8."""
    return " ".join(str(error).split()).encode(errors="backslashreplace").decode()


class Overview:
    """A spectrogram of bounded width. Whenever it is full, neighbouring columns are averaged."""

    def __init__(self) -> None:
        self.frames_per_column = 1
        self.columns_TM = np.zeros((0, NUM_MEL_BINS), np.float32)
        self._rest = self.columns_TM

    def add(self, fbank_TM: np.ndarray) -> None:
        frames_TM = np.concatenate([self._rest, fbank_TM])
        whole = len(frames_TM) // self.frames_per_column * self.frames_per_column
        self._rest = frames_TM[whole:]
        self.columns_TM = np.concatenate([self.columns_TM, _average(frames_TM[:whole], self.frames_per_column)])
        while len(self.columns_TM) > MAX_COLUMNS:
            # Return an odd last column to the frames that still have to be averaged.
            even = len(self.columns_TM) // 2 * 2
            odd = np.repeat(self.columns_TM[even:], self.frames_per_column, axis=0)
            self._rest = np.concatenate([odd, self._rest])
            self.columns_TM = _average(self.columns_TM[:even], 2)
            self.frames_per_column *= 2


def _average(frames_TM: np.ndarray, num: int) -> np.ndarray:
    return frames_TM.reshape(-1, num, NUM_MEL_BINS).mean(axis=1)
