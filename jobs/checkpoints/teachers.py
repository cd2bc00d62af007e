"""Import published scores of teachers into a store, and list the imported teachers."""

from itertools import chain

import numpy as np
import pandas as pd
import pyarrow as pa

from ast_model.teachers.grade import grade_teacher
from ast_model.teachers.matching import match_ids
from ast_model.teachers.probabilities import find_columns, find_kind, read_probabilities
from ast_model.teachers.score_files import open_scores
from ast_model.teachers.store import ScoreRows, check_name, list_teachers, publish_teacher, write_rows
from jobs.checkpoints.teacher_settings import ImportTeacher, ListTeachers
from jobs.command_line.cli import resolve_root
from pipeline.errors import MismatchError, quote
from pipeline.labels import read_labels
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.storage import Store


def import_teacher(config: ImportTeacher) -> None:
    """Match, convert and grade published scores, then store them as a teacher. Prints each step's result."""
    store = Store(resolve_root(config.root))
    check_name(store, config.name)
    snapshot = load_snapshot(store, config.snapshot or None)
    files = [open_scores(path, config.index, config.allow_unnamed_rows) for path in config.scores]
    columns = find_columns(files, snapshot.labels, read_labels(config.labels) if config.labels else None)
    kind = find_kind(files)
    ids = pa.chunked_array([chunk for file in files for chunk in file.ids.chunks], pa.string())
    matches = match_ids(ids, snapshot)
    num_matched = int((matches.rows >= 0).sum())
    if not num_matched:
        raise MismatchError(
            f"none of the {len(ids):,} ids, such as {quote(ids.drop_null()[:3].to_pylist())}, is a clip of snapshot"
            f" {snapshot.snapshot_id}; expected keys such as {snapshot.index['key'][0]}, or YouTube ids"
        )
    print(f"{', '.join(config.scores)}: {kind}, {len(ids):,} rows, {num_matched:,} match clips of the snapshot")
    if matches.num_ambiguous:
        print(f"{matches.num_ambiguous:,} rows skipped: the snapshot has several segments of their video")
    with store.scratch() as folder:
        file = folder / "scores.npy"
        blocks = chain.from_iterable(read_probabilities(each, kind, columns) for each in files)
        clips = write_rows(file, blocks, matches.rows, len(columns))
        if num_matched > len(clips):
            print(f"{num_matched - len(clips):,} rows are further rows of a clip; the clip gets their mean")
        grade = grade_teacher(ScoreRows(file), clips, snapshot, config.stated_map)
        stated = "" if config.stated_map is None else f" (publisher: {config.stated_map:.3f} on other clips)"
        print(f"graded on {grade.num_clips:,} labelled clips: mAP {grade.mAP:.3f}{stated}; chance {grade.chance:.3f}")
        facts = {
            "name": config.name,
            "mids": snapshot.labels.mids,
            "snapshot": snapshot.snapshot_id,
            "found": kind,
            "mAP": grade.mAP,
            "num_graded": grade.num_clips,
            "stated_mAP": config.stated_map,
            "sources": config.scores,
        }
        teacher = publish_teacher(store, file, snapshot.index["key"].take(pa.array(clips)), facts)
    for split in sorted(set(snapshot.splits)):
        rows = snapshot.rows_of((split,))
        num_scored = int(np.isin(rows, clips).sum())
        print(f"{split}: {num_scored:,} of {len(rows):,} clips have scores ({num_scored / len(rows):.1%})")
    print(f"{store.url(teacher.files.folder)}: train with --train.teachers {teacher.name}")


def show_teachers(config: ListTeachers) -> None:
    """Print a table of the store's teachers with their grades."""
    store = Store(resolve_root(config.root))
    rows = [
        {
            "name": teacher.name,
            "clips": teacher.num_clips,
            "mAP": round(teacher.mAP, 3),
            "stated": teacher.stated_mAP,
            "snapshot": teacher.snapshot,
            "from": ", ".join(teacher.sources),
        }
        for teacher in list_teachers(store)
    ]
    print(pd.DataFrame(rows).to_string(index=False) if rows else "no teacher yet")
