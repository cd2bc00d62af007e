"""Import published scores of teachers into a store, make scores with own models, and list the teachers."""

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from ast_model.evaluation.ensemble import load_for_classes
from ast_model.export import export_safetensors
from ast_model.teachers.grade import grade_teacher
from ast_model.teachers.making import ScoringPlan, plan_scoring, read_parts, remove_parts, score_chunk
from ast_model.teachers.matching import match_ids
from ast_model.teachers.probabilities import PROBABILITIES, find_columns, find_kind, read_probabilities
from ast_model.teachers.score_files import open_scores
from ast_model.teachers.store import ScoreRows, Teacher, check_name, list_teachers, publish_teacher, write_rows
from jobs.checkpoints.teacher_settings import ImportTeacher, ListTeachers, MakeTeacher
from jobs.command_line.cli import resolve_root
from pipeline.cluster.session import count_processors, ray_session
from pipeline.cluster.tasks import TASKS_PER_PROCESSOR, run_tasks
from pipeline.errors import ConfigError, MismatchError, quote
from pipeline.labels import read_labels
from pipeline.progress import show_progress
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint, load_snapshot
from pipeline.store.storage import Store

log = logging.getLogger(__name__)


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
        facts = {"found": kind, "stated_mAP": config.stated_map, "sources": config.scores}
        teacher = _publish(snapshot, config.name, file, clips, facts)
    _report(snapshot, teacher, clips)


def make_teacher(config: MakeTeacher) -> None:
    """Score the splits with all checkpoints on Ray, and store the mean as a teacher. A rerun scores missing clips."""
    store = Store(resolve_root(config.root))
    check_name(store, config.name)
    snapshot = load_snapshot(store, config.snapshot or None)
    check_fingerprint(snapshot)
    if not config.checkpoints:
        raise ConfigError("--checkpoints is empty: name at least one")
    models = [load_for_classes(source, snapshot.labels) for source in config.checkpoints]
    plan = plan_scoring(snapshot, config.split, config.name, models, config.batch_size)
    for number, (model, metadata) in enumerate(models):
        if not store.exists(name := plan.files.member(plan.plan_id, number)):
            with store.scratch() as folder:
                export_safetensors(model, folder / "model.safetensors", metadata)
                store.publish(folder / "model.safetensors", name)
    del models
    _score_missing(plan, config.use_gpu)
    rows = snapshot.rows_of(config.split)
    with store.scratch() as folder:
        file = folder / "scores.npy"
        is_finite = np.concatenate([np.isfinite(part).all(axis=1) for part in read_parts(plan)])
        if not is_finite.all():
            log.warning("%d clips have non-finite scores and are skipped", (~is_finite).sum())
        clips = write_rows(file, read_parts(plan), np.where(is_finite, rows, -1), len(snapshot.labels))
        facts = {"found": PROBABILITIES, "stated_mAP": None, "sources": config.checkpoints}
        teacher = _publish(snapshot, config.name, file, clips, facts)
    remove_parts(plan)
    _report(snapshot, teacher, clips)


def _score_missing(plan: ScoringPlan, use_gpu: bool) -> None:
    missing = plan.missing_chunks()
    if not missing:
        return
    num_done = plan.num_clips - sum(plan.size_of(first) for first in missing)
    with ray_session(), show_progress("score", plan.num_clips, "clips", num_done) as progress:
        in_flight = TASKS_PER_PROCESSOR * count_processors(use_gpu)
        score = _score_on_gpu if use_gpu else score_chunk
        for first, result in run_tasks(score, missing, plan, max_in_flight=in_flight, num_gpus=int(use_gpu)):
            if isinstance(result, Exception):
                raise result
            progress.advance(plan.size_of(first))


def _score_on_gpu(first: int, plan: ScoringPlan) -> int:
    return score_chunk(first, plan, torch.device("cuda"))


def _publish(snapshot: Snapshot, name: str, file: Path, clips: np.ndarray, facts: dict[str, Any]) -> Teacher:
    """Grade the scores of the clips in a file, print the grade, and move the file to the store."""
    stated_map = facts["stated_mAP"]
    grade = grade_teacher(ScoreRows(file), clips, snapshot, stated_map)
    stated = "" if stated_map is None else f" (publisher: {stated_map:.3f} on other clips)"
    print(f"graded on {grade.num_clips:,} labelled clips: mAP {grade.mAP:.3f}{stated}; chance {grade.chance:.3f}")
    facts |= {
        "name": name,
        "mids": snapshot.labels.mids,
        "snapshot": snapshot.snapshot_id,
        "mAP": grade.mAP,
        "num_graded": grade.num_clips,
    }
    return publish_teacher(snapshot.store, file, snapshot.index["key"].take(pa.array(clips)), facts)


def _report(snapshot: Snapshot, teacher: Teacher, clips: np.ndarray) -> None:
    for split in sorted(set(snapshot.splits)):
        rows = snapshot.rows_of((split,))
        num_scored = int(np.isin(rows, clips).sum())
        print(f"{split}: {num_scored:,} of {len(rows):,} clips have scores ({num_scored / len(rows):.1%})")
    print(f"{snapshot.store.url(teacher.files.folder)}: train with --train.teachers {teacher.name}")


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
