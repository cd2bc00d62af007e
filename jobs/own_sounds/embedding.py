"""Compute the embeddings of a snapshot's clips on Ray, and store them."""

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ast_model.data.augment import Normalisation
from ast_model.embeddings.extract import EmbeddingPlan, embed_chunk, find_missing, plan_embeddings
from ast_model.export import export_safetensors
from ast_model.model import AST
from pipeline.cluster.session import count_processors, ray_session
from pipeline.cluster.tasks import TASKS_PER_PROCESSOR, run_tasks
from pipeline.progress import format_duration, show_progress
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)


def embed_snapshot(
    snapshot: Snapshot,
    model: AST,
    normalisation: Normalisation,
    use_gpu: bool = False,
    faster: Sequence[str] = (),
) -> EmbeddingPlan:
    """Embed clips without stored embeddings. Returns the plan, which locates all. Starts Ray if necessary.

    faster: alternatives that the estimate of the remaining time names.
    """
    plan = plan_embeddings(snapshot, model, normalisation)
    if missing := find_missing(plan, snapshot):
        publish_model(model, plan)
    compute_embeddings(plan, snapshot, missing, use_gpu, faster)
    return plan


def compute_embeddings(
    plan: EmbeddingPlan,
    snapshot: Snapshot,
    missing: Sequence[np.ndarray],
    use_gpu: bool = False,
    faster: Sequence[str] = (),
) -> None:
    """Embed the missing rows of a snapshot on Ray. faster: alternatives to log with the estimated time."""
    num_clips, num_missing = len(snapshot.index), sum(map(len, missing))
    if num_clips > num_missing:
        log.info("%d of %d embeddings are stored already: %s", num_clips - num_missing, num_clips, plan.files.folder)
    if not missing:
        return
    start = time.monotonic()
    with ray_session(), show_progress("embed", num_clips, "clips", num_clips - num_missing) as progress:
        num_processors = count_processors(use_gpu)
        results = run_tasks(
            _embed_on_gpu if use_gpu else embed_chunk,
            missing,
            plan,
            max_in_flight=TASKS_PER_PROCESSOR * num_processors,
            num_gpus=int(use_gpu),
        )
        measured_s, num_measured = 0.0, 0
        for num_chunks, (rows, result) in enumerate(results, start=1):
            if isinstance(result, Exception):
                raise result
            progress.advance(len(rows))
            measured_s, num_measured = measured_s + result, num_measured + len(rows)
            if num_chunks == num_processors:  # measured with all processors busy
                _log_estimate(num_missing - num_measured, measured_s / num_measured, num_processors, faster)
    log.info("embedded %d clips in %.1f s", num_missing, time.monotonic() - start)


def _log_estimate(num_left: int, clip_s: float, num_processors: int, faster: Sequence[str]) -> None:
    log.info(
        "%d more clips to embed, %s each, on %d processors: about %s%s",
        *(num_left, format_time(clip_s), num_processors, format_duration(num_left * clip_s / num_processors)),
        f"; faster: {'; '.join(faster)}" if faster else "",
    )


def format_time(seconds: float) -> str:
    """Format a short time in s or ms, with two digits: `4.2 s`, `35 ms`, `0.25 ms`."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"


def publish_model(model: AST, plan: EmbeddingPlan) -> None:
    """Write the model to the store, where tasks load it, unless it is already there."""
    if plan.store.exists(plan.files.model):
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        export_safetensors(model, file)
        plan.store.write_bytes(plan.files.model, file.read_bytes())


def _embed_on_gpu(rows: np.ndarray, plan: EmbeddingPlan) -> float:
    return embed_chunk(rows, plan, torch.device("cuda"))
