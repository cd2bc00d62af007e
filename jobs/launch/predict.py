"""Tags of audio files, as a table."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ast_model.inference import Tagger
from jobs.config import PredictConfig
from pipeline.audio.container import EXTENSIONS
from pipeline.errors import AudioTaggingError, InputError
from pipeline.progress import show_progress

log = logging.getLogger(__name__)


def predict(config: PredictConfig) -> None:
    """Tag each file; those that can't be read are named at the end, and make the job fail."""
    files = list(find_audio(config.audio))
    tagger = Tagger.load(config.checkpoint, config.labels or None, config.device or None)
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
    """Return a row for each window, or the whole file, and each of its best classes."""
    if config.timeline:
        scores = tagger.timeline(file, config.window_s, config.hop_s)
    else:
        scores = pd.DataFrame(tagger.scores([file]), index=pd.Index([0.0]), columns=pd.Index(tagger.labels))
    rows = [
        (file, start_s, rank, name, score)
        for start_s, row in scores.iterrows()
        for rank, (name, score) in enumerate(row.nlargest(config.top_k).items(), start=1)
    ]
    return pd.DataFrame(rows, columns=pd.Index(["file", "start_s", "rank", "name", "score"]))


def write_table(table: pd.DataFrame, config: PredictConfig) -> None:
    text = {"text": _as_text, "csv": _as_csv, "json": _as_json}[config.format](table)
    if config.output:
        Path(config.output).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def _as_text(table: pd.DataFrame) -> str:
    lines = []
    for (file, start_s), tags in table.groupby(["file", "start_s"], sort=False):
        lines.append(f"{file}" if table["start_s"].eq(0).all() else f"{file}  {start_s:.2f} s")
        lines += [f"  {score:.3f}  {name}" for name, score in zip(tags["name"], tags["score"], strict=True)]
    return "\n".join(lines) + "\n"


def _as_csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g")


def _as_json(table: pd.DataFrame) -> str:
    return table.to_json(orient="records", indent=1, force_ascii=False) + "\n"
