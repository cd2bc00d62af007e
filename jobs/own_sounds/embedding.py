"""Compute the embeddings of a snapshot's clips on Ray, and store them."""

import logging
import tempfile
import time
from pathlib import Path

import torch

from ast_model.data.augment import Normalisation
from ast_model.embeddings.extract import EmbeddingPlan, embed_chunk, plan_embeddings
from ast_model.export import export_safetensors
from ast_model.model import AST
from pipeline.cluster.session import count_processors, ray_session
from pipeline.cluster.tasks import TASKS_PER_PROCESSOR, run_tasks
from pipeline.progress import format_duration, show_progress
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)


def embed_snapshot(
    snapshot: Snapshot, model: AST, normalisation: Normalisation, use_gpu: bool = False
) -> EmbeddingPlan:
    """Embed clips without stored embeddings. Returns the plan, which locates all. Starts Ray if necessary."""
    plan = plan_embeddings(snapshot, model, normalisation)
    missing = plan.missing_chunks()
    if not missing:
        log.info("%d embeddings are stored already: %s", plan.num_clips, plan.store.url(plan.files.folder))
        return plan
    publish_model(model, plan)
    num_done = plan.num_clips - sum(len(plan.rows_of(first)) for first in missing)
    start = time.monotonic()
    with ray_session(), show_progress("embed", plan.num_clips, "clips", num_done) as progress:
        num_processors = count_processors(use_gpu)
        results = run_tasks(
            _embed_on_gpu if use_gpu else embed_chunk,
            missing,
            plan,
            max_in_flight=TASKS_PER_PROCESSOR * num_processors,
            num_gpus=int(use_gpu),
        )
        measured_s, num_measured = 0.0, 0
        for num_chunks, (first, result) in enumerate(results, start=1):
            if isinstance(result, Exception):
                raise result
            progress.advance(len(plan.rows_of(first)))
            measured_s, num_measured = measured_s + result, num_measured + len(plan.rows_of(first))
            if num_chunks == num_processors:  # measured with all processors busy
                _log_estimate(plan.num_clips - num_done - num_measured, measured_s / num_measured, num_processors)
    log.info("embedded %d clips in %.1f s", plan.num_clips - num_done, time.monotonic() - start)
    return plan


def _log_estimate(num_left: int, clip_s: float, num_processors: int) -> None:
    left = format_duration(num_left * clip_s / num_processors)
    log.info(
        "%d more clips to embed, %.3g ms each, on %d processors: about %s",
        *(num_left, 1000 * clip_s, num_processors, left),
    )


def publish_model(model: AST, plan: EmbeddingPlan) -> None:
    """Write the model to the store, where tasks load it, unless it is already there."""
    if plan.store.exists(plan.files.model):
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        export_safetensors(model, file)
        plan.store.write_bytes(plan.files.model, file.read_bytes())


def _embed_on_gpu(first: int, plan: EmbeddingPlan) -> float:
    return embed_chunk(first, plan, torch.device("cuda"))
