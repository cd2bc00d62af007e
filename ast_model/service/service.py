"""Tag and embed uploaded sounds, with windows of all requests in shared batches.

Independent of HTTP and Ray: the caller passes `run`, which sends a window to the model and returns its results.
"""

import asyncio
import difflib
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from ast_model.inference import Tagger
from ast_model.review import Format, best_classes, write_tags
from ast_model.service.limits import Limits
from ast_model.service.sound import Sound, Window, cut_windows, draw_spectrogram, pool, read_sound
from pipeline.errors import InputError, quote
from pipeline.fbank_settings import FRAMES_PER_S

NUM_DECODERS = 2
MAX_NAME_BYTES = 200
"""Longest file name. File systems allow 255 bytes, and review files append their extension."""
WINDOWS_AT_A_TIME = 8
"""Concurrent windows per request, so that long sounds don't delay short ones."""
MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
    "raven": "text/tab-separated-values; charset=utf-8",
    "audacity": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, eq=False)
class ServedModel:
    """The model that currently answers requests."""

    tagger: Tagger
    name: str
    """The requested name: a folder, a hub name or models:/NAME@ALIAS."""
    version: str = ""
    """Version in the registry; empty for models from elsewhere."""


@dataclass(frozen=True, slots=True, eq=False)
class PendingWindow:
    """A window for the model."""

    model: ServedModel
    fbank_TM: np.ndarray


Result = tuple[np.ndarray, np.ndarray]
"""Uncalibrated scores (C,) and embedding (D,) of a window."""


@dataclass(frozen=True)
class TagOptions:
    """Options of a request."""

    name: str = "sound"
    """Name of the file for tables. It is never opened."""
    top_k: int = 5
    threshold: float = 0.0
    classes: tuple[str, ...] = ()
    """Classes to return; all if empty."""
    timeline: bool = False
    window_s: float | None = None
    hop_s: float | None = None
    spectrogram: bool = False


def run_batch(works: Sequence[PendingWindow]) -> list[Result]:
    """Score windows, with one batch per model: two models are in use briefly during an exchange."""
    results: list[Result | None] = [None] * len(works)
    for model in {id(work.model): work.model for work in works}.values():
        positions = [position for position, work in enumerate(works) if work.model is model]
        scores_WC, embeddings_WD = model.tagger.run_windows([works[position].fbank_TM for position in positions])
        for position, scores_C, embedding_D in zip(positions, scores_WC, embeddings_WD, strict=True):
            results[position] = (scores_C, embedding_D)
    return [result for result in results if result is not None]


class Service:
    """Answers requests with the current model. A request keeps its model until its end."""

    def __init__(self, model: ServedModel, limits: Limits, run: Callable[[PendingWindow], Awaitable[Result]]):
        self.model, self.limits, self.run = model, limits, run
        self._threads = ThreadPoolExecutor(NUM_DECODERS, thread_name_prefix="decode")
        self._decoders = asyncio.Semaphore(NUM_DECODERS)

    def labels(self) -> dict[str, Any]:
        return {"model": self.model.name, "version": self.model.version, "labels": list(self.model.tagger.labels)}

    async def tag(self, content: bytes, options: TagOptions) -> dict[str, Any]:
        """Return the best classes of a sound and, for a timeline, of its windows. Raises InputError."""
        model = self.model
        thresholds = _thresholds(model.tagger, options)
        sound = await self._read(content)
        whole = self._cut(model, sound)
        length = model.tagger.num_window_frames(options.window_s)
        windows: list[Window] = []
        if options.timeline:
            hop = model.tagger.num_hop_frames(length, options.hop_s)
            windows = cut_windows(sound, length, hop, self.limits.max_windows)
        # Windows shared by the timeline and the score of the whole sound are computed once.
        distinct = sorted({*whole, *windows})
        scores = dict(zip(distinct, (await self._run(model, sound, distinct))[0], strict=True))
        of_whole_C = pool(np.stack([scores[window] for window in whole]), whole)

        def rank(starts_s: list[float], scores_WC: np.ndarray, window_s: float) -> list[dict[str, Any]]:
            return [
                {
                    "start_s": round(start_s, 3),
                    "end_s": round(min(start_s + window_s, sound.length_s), 3),
                    "label": model.tagger.labels[c],
                    "score": round(float(scores_C[c]), 6),
                }
                for start_s, scores_C in zip(starts_s, model.tagger.calibrate(scores_WC), strict=True)
                for c in best_classes(scores_C, options.top_k, thresholds)
            ]

        answer: dict[str, Any] = {
            "name": clean_name(options.name),
            "model": model.name,
            "version": model.version,
            "length_s": round(sound.length_s, 3),
            "tags": rank([0.0], of_whole_C[None], sound.length_s),
        }
        if options.timeline:
            window_s = options.window_s or length / FRAMES_PER_S
            starts_s, scores_WC = [window.start_s for window in windows], [scores[window] for window in windows]
            answer["timeline"] = rank(starts_s, np.stack(scores_WC), window_s)
        if options.spectrogram:
            answer["spectrogram"] = await asyncio.to_thread(draw_spectrogram, sound)
        return answer

    async def embed(self, content: bytes) -> dict[str, Any]:
        """Return the embedding of a sound. Raises InputError."""
        model = self.model
        sound = await self._read(content)
        windows = self._cut(model, sound)
        _, embeddings_WD = await self._run(model, sound, windows)
        return {
            "model": model.name,
            "version": model.version,
            "length_s": round(sound.length_s, 3),
            "embedding": pool(embeddings_WD, windows).tolist(),
        }

    async def _read(self, content: bytes) -> Sound:
        """Decode in a thread. Raises InputError for other content, long audio and slow decoding."""
        await self._decoders.acquire()
        work = asyncio.get_running_loop().run_in_executor(self._threads, read_sound, content, self.limits.max_audio_s)

        def release(done: asyncio.Future[Sound]) -> None:
            done.exception()  # retrieve it, or asyncio warns about an unobserved exception
            self._decoders.release()

        # Threads can't be stopped. This one keeps its place until the decoder's limits end it, but the request does not
        # wait.
        work.add_done_callback(release)
        try:
            return await asyncio.wait_for(asyncio.shield(work), self.limits.decode_s)
        except TimeoutError:
            raise InputError(f"expected a sound that is decoded within {self.limits.decode_s:g} s") from None

    def _cut(self, model: ServedModel, sound: Sound) -> list[Window]:
        """Cut a sound into windows of the model's length, whose mean is the score of the whole sound."""
        window = model.tagger.num_window_frames(None)
        return cut_windows(sound, window, window, self.limits.max_windows)

    async def _run(self, model: ServedModel, sound: Sound, windows: Sequence[Window]) -> Result:
        """Return scores (W, C) and embeddings (W, D) of a sound's windows."""
        results: list[Result] = []
        for first in range(0, len(windows), WINDOWS_AT_A_TIME):
            some = windows[first : first + WINDOWS_AT_A_TIME]
            works = [PendingWindow(model, sound.fbank_TM[window.start : window.stop]) for window in some]
            results += await asyncio.gather(*map(self.run, works))
        scores, embeddings = zip(*results, strict=True)
        return np.stack(scores), np.stack(embeddings)


def _thresholds(tagger: Tagger, options: TagOptions) -> np.ndarray:
    """Return each class's minimum score; infinite for classes outside of the request."""
    calibrated = np.zeros(len(tagger.labels)) if tagger.calibration is None else np.array(tagger.calibration.thresholds)
    thresholds = np.maximum(calibrated, options.threshold)
    for name in options.classes:
        if name not in tagger.labels:
            close = difflib.get_close_matches(name, tagger.labels, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "GET /v1/labels lists them"
            raise InputError(f"expected a class of the model, found {quote(name)}; {hint}")
    if options.classes:
        thresholds[[label not in options.classes for label in tagger.labels]] = np.inf
    return thresholds


def clean_name(name: str) -> str:
    """Return the last part of a file's name, safe for tables and names of derived files."""
    printable = "".join(character if character.isprintable() else " " for character in PurePath(name).name)
    return printable.encode(errors="replace")[:MAX_NAME_BYTES].decode(errors="ignore").strip() or "sound"


def render_tags(rows: Sequence[dict[str, Any]], name: str, format: Format) -> bytes:
    """Render the rows of an answer as a file, with the writer of jobs/predict.py. Raises InputError."""
    if not rows:
        raise InputError("expected at least one tag to write, found none: lower the threshold")
    table = pd.DataFrame(list(rows)).assign(file=clean_name(name))
    with tempfile.TemporaryDirectory() as folder:
        # For Raven and Audacity the writer takes a folder and names files after sounds.
        [file] = write_tags(table, format, Path(folder) / ("" if format in ("raven", "audacity") else "tags"))
        return file.read_bytes()
