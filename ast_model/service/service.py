"""Tag and embed uploads. Windows of all requests share batches.

The module is independent of HTTP and Ray. The caller passes `run`, which sends a window to the model and returns its
results.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
import torch

from ast_model.inference import Tagger
from ast_model.service.limits import Limits
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.ranking import TagCollector
from ast_model.tagging.spectrogram import Spectrogram
from ast_model.tagging.tables import MAX_NAME_BYTES, Format, render_tags
from ast_model.tagging.windows import Window, pool_windows, seconds_of_frames
from pipeline.audio.decode import decode_file
from pipeline.errors import InputError
from pipeline.fbank import compute_fbank
from pipeline.page import spectrogram_url

NUM_DECODERS = 2
WINDOWS_AT_A_TIME = 8
"""Concurrent windows per request, so that a long upload does not delay short uploads."""
DECIMALS = {"start_s": 3, "end_s": 3, "score": 6}


@dataclass(frozen=True, eq=False)
class ServedModel:
    """The model that currently answers requests."""

    tagger: Tagger
    name: str
    """Name for users, such as the title of its run; never a path of this machine."""
    version: str = ""
    """Version in the registry; empty for models from other places."""


@dataclass(frozen=True, slots=True, eq=False)
class PendingWindow:
    """A window that waits for its batch."""

    model: ServedModel
    fbank_TM: np.ndarray


Result = tuple[np.ndarray, np.ndarray]
"""Uncalibrated scores (C,) and embedding (D,) of a window."""


def run_batch(pending: Sequence[PendingWindow]) -> list[Result]:
    """Score windows with one batch per model. While a model is exchanged, two models are in use."""
    results: dict[int, Result] = {}
    for model in {id(each.model): each.model for each in pending}.values():
        positions = [position for position, each in enumerate(pending) if each.model is model]
        scores_WC, embeddings_WD = model.tagger.scorer.score_batch([pending[each].fbank_TM for each in positions])
        results |= zip(positions, zip(scores_WC, embeddings_WD, strict=True), strict=True)
    return [results[position] for position in range(len(pending))]


class Service:
    """Answers requests with the current model. A request uses the same model from start to end."""

    def __init__(self, model: ServedModel, limits: Limits, run: Callable[[PendingWindow], Awaitable[Result]]):
        self.model, self.limits, self.run = model, limits, run
        self._threads = ThreadPoolExecutor(NUM_DECODERS, thread_name_prefix="decode")
        self._decoders = asyncio.Semaphore(NUM_DECODERS)

    def labels(self) -> dict[str, Any]:
        return {"model": self.model.name, "version": self.model.version, "labels": list(self.model.tagger.labels)}

    async def tag(
        self, content: bytes, options: TaggingOptions, name: str = "sound", with_spectrogram: bool = False
    ) -> dict[str, Any]:
        """Return the best classes of an upload and, for a timeline, of its windows. Raises InputError or ConfigError.

        name: the file's name for tables. It is never opened.
        """
        model, scorer = self.model, self.model.tagger.scorer
        # Check the options before decoding the upload.
        tags, timeline = TagCollector(scorer, options), TagCollector(scorer, options)
        grid = scorer.timeline_grid(options)
        fbank_TM = await self._decode(content)
        whole = scorer.whole_grid.cut(len(fbank_TM), self.limits.max_windows)
        windows = grid.cut(len(fbank_TM), self.limits.max_windows) if options.timeline else []
        # Compute windows only once if both the timeline and the whole upload's score need them.
        results = await self._run(model, fbank_TM, sorted({*whole, *windows}))
        length_s = seconds_of_frames(len(fbank_TM))
        tags.add(0.0, pool_windows([results[window][0] for window in whole], whole))
        answer = {"name": clean_name(name), **_header(model, length_s), "tags": _to_rows(tags, length_s, length_s)}
        if options.timeline:
            for window in windows:
                timeline.add(window.start_s, results[window][0])
            answer["timeline"] = _to_rows(timeline, grid.window_s, length_s)
        if with_spectrogram:
            answer["spectrogram"] = await asyncio.to_thread(_draw_spectrogram, fbank_TM)
        return answer

    async def embed(self, content: bytes) -> dict[str, Any]:
        """Return the embedding of an upload. Raises InputError."""
        model = self.model
        fbank_TM = await self._decode(content)
        windows = model.tagger.scorer.whole_grid.cut(len(fbank_TM), self.limits.max_windows)
        results = await self._run(model, fbank_TM, windows)
        embedding_D = pool_windows([results[window][1] for window in windows], windows)
        return {**_header(model, seconds_of_frames(len(fbank_TM))), "embedding": embedding_D.tolist()}

    async def _decode(self, content: bytes) -> np.ndarray:
        """Compute features (T, 128) in a thread. Raises InputError for damaged audio, long audio and slow decoding."""
        await self._decoders.acquire()
        work = asyncio.get_running_loop().run_in_executor(self._threads, _read_fbank, content, self.limits.max_audio_s)

        def release(done: asyncio.Future[np.ndarray]) -> None:
            done.exception()  # retrieve it, or asyncio warns about an unobserved exception
            self._decoders.release()

        # Threads can't be stopped. The request does not wait, but the thread keeps its slot until the decoder's limits
        # end it.
        work.add_done_callback(release)
        try:
            return await asyncio.wait_for(asyncio.shield(work), self.limits.decode_s)
        except TimeoutError:
            raise InputError(f"expected a sound that takes at most {self.limits.decode_s:g} s to decode") from None

    async def _run(self, model: ServedModel, fbank_TM: np.ndarray, windows: Sequence[Window]) -> dict[Window, Result]:
        """Return the results of an upload's windows."""
        results: dict[Window, Result] = {}
        for first in range(0, len(windows), WINDOWS_AT_A_TIME):
            some = windows[first : first + WINDOWS_AT_A_TIME]
            pending = [PendingWindow(model, fbank_TM[window.start : window.stop]) for window in some]
            results |= zip(some, await asyncio.gather(*map(self.run, pending)), strict=True)
        return results


def _read_fbank(content: bytes, max_s: float) -> np.ndarray:
    if not content:
        raise InputError("expected the bytes of a sound file as the body of the request, found an empty body")
    waveform_S = decode_file(content, round(max_s * 1000))
    return compute_fbank(torch.from_numpy(waveform_S)).numpy()


def _header(model: ServedModel, length_s: float) -> dict[str, Any]:
    return {"model": model.name, "version": model.version, "length_s": round(length_s, 3)}


def _to_rows(tags: TagCollector, window_s: float, length_s: float) -> list[dict[str, Any]]:
    table = tags.to_table("", window_s, length_s).drop(columns="file").round(DECIMALS)
    return [{str(column): value for column, value in row.items()} for row in table.to_dict("records")]


def _draw_spectrogram(fbank_TM: np.ndarray) -> str:
    """Draw features as a PNG data URL, low frequencies at the bottom."""
    spectrogram = Spectrogram()
    spectrogram.add(fbank_TM)
    return spectrogram_url(spectrogram.columns_TM, frames_per_pixel=1)


def clean_name(name: str) -> str:
    """Return the last part of a file's path as a safe name for tables and derived files."""
    printable = "".join(character if character.isprintable() else " " for character in PurePath(name).name)
    return printable.encode(errors="replace")[:MAX_NAME_BYTES].decode(errors="ignore").strip() or "sound"


def render_rows(rows: Sequence[dict[str, Any]], name: str, format: Format) -> bytes:
    """Render the rows of an answer as a file in the formats of jobs/predict.py. Raises InputError."""
    if not rows:
        raise InputError("expected at least one tag to write, found none: lower the threshold")
    return render_tags(pd.DataFrame(list(rows)).assign(file=clean_name(name)), format)
