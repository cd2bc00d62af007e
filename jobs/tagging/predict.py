"""Tag audio files in this process, or on Ray if the output is a folder of tables."""

import logging
import sys
from collections.abc import Set
from pathlib import Path, PurePath

import pandas as pd

from ast_model.inference import Tagger
from ast_model.tagging.streams import Tagged, Untagged, tag_recordings
from ast_model.tagging.tables import render_tags, unused_path, write_tags
from jobs.tagging.settings import PredictConfig
from pipeline.errors import InputError
from pipeline.progress import show_progress
from pipeline.sources.listing import list_media_files

log = logging.getLogger(__name__)
MANY_FILES = 1_000


def predict(config: PredictConfig) -> None:
    """Tag each file. Unreadable files are listed at the end, and the job fails."""
    recordings = list(list_media_files(config.audio))
    if config.is_parallel:
        from jobs.tagging.parallel import tag_in_groups  # a few files need no Ray

        tag_in_groups(recordings, config)
        return
    if len(recordings) >= MANY_FILES:
        log.info(
            "%d files: --format parquet with a folder as --output tags them in parallel and resumes interrupted runs",
            len(recordings),
        )
    tagger = Tagger.load(config.checkpoint, config.labels or None, config.device or None, config.calibrated)
    tables, errors, drawn = [], [], set[Path]()
    with show_progress("tag", len(recordings), "files") as progress:
        for result in tag_recordings(tagger.scorer, recordings, config, with_spectrogram=bool(config.plot)):
            if isinstance(result, Untagged):
                errors.append(f"{result.name}: {result.failure.detail}")
            else:
                tables.append(result.tags)
                if config.plot:
                    drawn.add(_draw(result, Path(config.plot), drawn))
            progress.advance(1, f"{len(errors)} failed" if errors else "")
    if tables:
        write_table(pd.concat(tables, ignore_index=True), config)
    if errors:
        raise InputError(
            f"{len(errors)} of {len(recordings)} files could not be tagged:\n  " + "\n  ".join(errors[:20])
        )


def write_table(table: pd.DataFrame, config: PredictConfig) -> None:
    if config.format != "text" and config.output:
        files = write_tags(table, config.format, Path(config.output))
        log.info("%d tags in %s%s", len(table), files[0] if files else config.output, " …" if len(files) > 1 else "")
        return
    text = _as_text(table) if config.format == "text" else render_tags(table, "csv").decode()
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


def _draw(result: Tagged, folder: Path, drawn: Set[Path]) -> Path:
    """Draw a recording's tags to a new file; return the file."""
    from ast_model.tagging.tag_plot import plot_tags  # importing matplotlib is slow

    folder.mkdir(parents=True, exist_ok=True)
    file = unused_path(folder, result.name, ".png", drawn)
    plot_tags(PurePath(result.name).name, result.spectrogram_TM, result.length_s, result.tags).savefig(file, dpi=120)
    return file
