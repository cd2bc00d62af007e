"""Tags of audio files, as a table."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ast_model.inference import FRAMES_PER_S, Tagger
from ast_model.review import rank_tags, write_tags
from jobs.config import PredictConfig
from pipeline.audio.container import EXTENSIONS
from pipeline.errors import AudioTaggingError, InputError
from pipeline.fbank import FRAME_LENGTH_MS, FRAME_SHIFT_MS
from pipeline.progress import show_progress

log = logging.getLogger(__name__)


def predict(config: PredictConfig) -> None:
    """Tag each file; unreadable ones are named at the end, and make the job fail."""
    files = list(find_audio(config.audio))
    tagger = Tagger.load(config.checkpoint, config.labels or None, config.device or None, config.calibrated)
    tables, errors = [], []
    with show_progress("tag", len(files), "files") as progress:
        for file in files:
            try:
                tables.append(tag_file(tagger, file, config))
            except AudioTaggingError as error:
                errors.append(f"{file}: {error}")
            progress.advance(1, f"{len(errors)} failed" if errors else "")
    if tables:
        write_table(pd.concat(tables, ignore_index=True), config)
    if errors:
        raise InputError(f"{len(errors)} of {len(files)} files could not be tagged:\n  " + "\n  ".join(errors[:20]))


def find_audio(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield files as given, and those of folders by name. Raises InputError for a path that holds no audio."""
    for path in paths:
        if not Path(path).is_dir():
            yield path
            continue
        found = sorted(str(file) for file in Path(path).rglob("*") if file.suffix[1:].lower() in EXTENSIONS)
        if not found:
            raise InputError(f"expected audio files in {path}, found none ({', '.join(sorted(EXTENSIONS))})")
        yield from found


def tag_file(tagger: Tagger, file: str, config: PredictConfig) -> pd.DataFrame:
    """Return a row for each window, or the whole file, and each of its best classes; columns as in `review`."""
    fbank_TM = tagger.fbank(file)
    length_s = (FRAME_LENGTH_MS + (len(fbank_TM) - 1) * FRAME_SHIFT_MS) / 1000
    if config.timeline:
        scores = tagger.timeline_of_fbank(fbank_TM, config.window_s, config.hop_s)
        window_s = config.window_s or tagger.model.config.num_frames / FRAMES_PER_S
    else:
        whole = tagger.scores_of_fbank(fbank_TM)[None]
        scores = pd.DataFrame(whole, index=pd.Index([0.0]), columns=pd.Index(tagger.labels))
        window_s = length_s
    thresholds = np.zeros(len(tagger.labels))
    if tagger.calibration is not None:
        thresholds = np.asarray(tagger.calibration.thresholds)
    return rank_tags(file, scores, window_s, length_s, config.top_k, thresholds)


def write_table(table: pd.DataFrame, config: PredictConfig) -> None:
    if config.format != "text" and config.output:
        files = write_tags(table, config.format, Path(config.output))
        log.info("%d tags in %s%s", len(table), files[0] if files else config.output, " …" if len(files) > 1 else "")
        return
    text = _as_text(table) if config.format == "text" else table.to_csv(index=False, float_format="%.6g")
    if config.output:
        Path(config.output).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def _as_text(table: pd.DataFrame) -> str:
    lines = []
    for (file, start_s), tags in table.groupby(["file", "start_s"], sort=False):
        lines.append(f"{file}" if table["start_s"].eq(0).all() else f"{file}  {start_s:.2f} s")
        lines += [f"  {score:.3f}  {label}" for label, score in zip(tags["label"], tags["score"], strict=True)]
    return "\n".join(lines) + "\n"
