"""Models in MLflow: real ones that can be loaded and served, and the registry's versions with their aliases."""

import importlib.metadata
import io
import logging
import tempfile
import time
import warnings
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel, LoggedModelStatus, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, TensorSpec

from ast_model.checkpoint import DESCRIPTION
from ast_model.metrics import mean_average_precision_change, mean_average_precision_interval
from ast_model.scores import AVERAGE, Scores, in_common, parse_scores
from ast_model.tracking import CHECKPOINT_TAG, MODEL_TYPE, SNAPSHOT_TAG, TrackedRun, find_model, tracking_errors
from ast_model.tracking_pyfunc import CHECKPOINT, TOP_K
from pipeline.errors import MismatchError, TrackingError
from pipeline.fbank import SAMPLE_RATE_HZ
from pipeline.storage import Store

log = logging.getLogger(__name__)

REGISTERED = "audioset-ast"
PREPROCESSING = "audioset-preprocess"
CHAMPION, KIND_TAG = "champion", "kind"
"""The alias that we set; MLflow itself keeps `latest` for the newest version."""
PACKAGES = ("ast_model", "pipeline")
REQUIRED = (
    "av fsspec huggingface_hub matplotlib mlflow numpy pandas pyarrow requests s3fs safetensors scikit-learn scipy"
    " torch torchaudio"
).split()
"""What loading and serving a model imports."""
SERVED_FILES = ("checkpoint.json", "model.safetensors")


@dataclass(frozen=True)
class Difference:
    """mAP of one model less that of another, on the clips that both were measured on."""

    value: float
    low: float
    high: float
    num_clips: int

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}] on {self.num_clips} clips"


def signature() -> ModelSignature:
    """Say what a served model takes and gives."""
    fbank = Array(Array(DataType.double))
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, "audio", required=False),
        ColSpec(DataType.string, "path", required=False),
        ColSpec(fbank, "fbank", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(Array(DataType.string), "tags"),
        ColSpec(Array(DataType.double), "scores"),
    ]
    params = ParamSchema([ParamSpec("top_k", DataType.long, TOP_K)])
    return ModelSignature(Schema(inputs), Schema(outputs), params)


def example() -> tuple[pd.DataFrame, dict[str, int]]:
    """Return an input that a served model takes: half a second of a tone, as a WAV file's bytes."""
    samples = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((samples * 8000).astype("<i2").tobytes())
    return pd.DataFrame({"audio": [out.getvalue()]}), {"top_k": 3}


def requirements() -> list[str]:
    """Pin what a served model imports to what is installed."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in REQUIRED]


def log_served_model(tracked: TrackedRun, kind: str, store: Store, checkpoint: str, scores: Scores) -> ModelVersion:
    """Let a checkpoint's model be loaded and served, and make it a version in the registry.

    What is there already stays as it is. Raises TrackingError if the server or its registry refuses.
    """
    client, name = tracked.client, AVERAGE if kind == AVERAGE else checkpoint.split("/")[-1]
    tags = {CHECKPOINT_TAG: store.url(checkpoint), SNAPSHOT_TAG: tracked.snapshot_id, "epoch": str(scores.epoch)}
    try:
        experiment_id = client.get_run(tracked.run_id).info.experiment_id
        model = find_model(client, experiment_id, tracked.run_id, name)
        if model is None:  # the server was away when the checkpoint was told of
            model = client.create_logged_model(experiment_id, name, tracked.run_id, tags, model_type=MODEL_TYPE)
        if KIND_TAG not in model.tags:
            with tempfile.TemporaryDirectory() as folder:
                _save(Path(folder), store, checkpoint, (tracked.run_id, model.model_id))
                client.log_model_artifacts(model.model_id, f"{folder}/model")
            _log_interval(client, tracked, model.model_id, kind, scores)
            client.set_logged_model_tags(model.model_id, {KIND_TAG: kind})
        if model.status != LoggedModelStatus.READY:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return _register(client, tracked.run_id, model, tags | {KIND_TAG: kind})
    except MlflowException as error:
        raise TrackingError(
            f"the {kind} model of run {tracked.run_id} is not in the registry of {tracked.uri}: {error.message}; its"
            f" checkpoint is safe in {store.url(checkpoint)}"
        ) from error


def forget_removed(tracked: TrackedRun, store: Store, run: str) -> None:
    """Remove from MLflow the models of checkpoints that were not kept; served ones have their own copy."""
    client = tracked.client
    with tracking_errors(tracked.uri):
        experiment_id = client.get_run(tracked.run_id).info.experiment_id
        for model in client.search_logged_models([experiment_id], f"source_run_id = '{tracked.run_id}'"):
            place = f"runs/{run}/checkpoints/{model.name}/{DESCRIPTION}"
            if model.name != AVERAGE and KIND_TAG not in model.tags and not store.exists(place):
                client.delete_logged_model(model.model_id)


def _save(folder: Path, store: Store, checkpoint: str, ids: tuple[str, str]) -> None:
    run_id, model_id = ids
    (folder / CHECKPOINT).mkdir()
    for name in SERVED_FILES:
        (folder / CHECKPOINT / name).write_bytes(store.read_bytes(f"{checkpoint}/{name}"))
    root = Path(__file__).parents[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of type hints, which the signature replaces
        save_model(
            folder / "model",
            python_model=str(root / "ast_model" / "tracking_pyfunc.py"),
            artifacts={CHECKPOINT: str(folder / CHECKPOINT)},
            code_paths=[str(root / package) for package in PACKAGES],
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=signature(),
            input_example=example(),
            pip_requirements=requirements(),
        )


def _log_interval(client: MlflowClient, tracked: TrackedRun, model_id: str, kind: str, scores: Scores) -> None:
    low, high = mean_average_precision_interval(scores.scores, scores.targets)
    now_ms, prefix = int(time.time() * 1000), AVERAGE if kind == AVERAGE else "eval"
    values = {f"{prefix}/mAP_low": low, f"{prefix}/mAP_high": high}
    client.log_batch(
        tracked.run_id,
        [Metric(key, value, now_ms, scores.epoch, model_id, run_id=tracked.run_id) for key, value in values.items()],
    )


def _register(client: MlflowClient, run_id: str, model: LoggedModel, tags: Mapping[str, str]) -> ModelVersion:
    for version in versions(client):
        if version.tags.get("model_id") == model.model_id:
            return version
    try:
        client.create_registered_model(
            REGISTERED, description="AST models; `champion` is the best, `latest` the newest"
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Named by its place: an address such as models:/ID would be looked up on whichever server is MLflow's default.
    source, all_tags = model.artifact_location, {**tags, "model_id": model.model_id}
    return client.create_model_version(REGISTERED, source, run_id, all_tags, model_id=model.model_id)


def versions(client: MlflowClient) -> list[ModelVersion]:
    """Return all versions in the registry, newest first."""
    found = client.search_model_versions(f"name = '{REGISTERED}'", max_results=1000)
    return sorted(found, key=lambda version: -int(version.version))


def find_version(client: MlflowClient, version: str) -> ModelVersion:
    """Return a version by number or alias. Raises TrackingError."""
    try:
        if version.isdecimal():
            return client.get_model_version(REGISTERED, version)
        return client.get_model_version_by_alias(REGISTERED, version)
    except MlflowException as error:
        known = ", ".join(found.version for found in versions(client)[:20]) or "none at all"
        raise TrackingError(
            f"expected a version or alias of the model {REGISTERED}, found {version!r}; there are: {known}"
        ) from error


def champion(client: MlflowClient) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(REGISTERED, CHAMPION)
    except MlflowException:
        return None


def scores_of(client: MlflowClient, run_id: str, kind: str) -> Scores:
    """Fetch the scores of a run's evaluation. Raises TrackingError if it has none."""
    address = f"evaluations/{kind}/scores.npz"
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(client.download_artifacts(run_id, address, folder)).read_bytes()
    except (MlflowException, OSError) as error:
        raise TrackingError(f"expected {address} among the artifacts of run {run_id}, found none ({error})") from error
    return parse_scores(data, address)


def difference(new: Scores, old: Scores) -> Difference:
    """Compare two evaluations on the clips that both have. Raises MismatchError."""
    new, old = in_common(new, old)
    change = mean_average_precision_change(old.scores, new.scores, old.targets)
    return Difference(*change, num_clips=len(new.keys))


def crown(client: MlflowClient, version: ModelVersion, scores: Scores) -> str:
    """Make a version the champion if it is better than the one there is; return what was decided, which is noted."""
    before = champion(client)
    if before is None:
        decision, is_better = "the first", True
    elif before.version == version.version:
        return "is the champion already"
    else:
        try:
            change = difference(scores, scores_of(client, before.run_id or "", before.tags[KIND_TAG]))
            decision, is_better = f"{change} against version {before.version}", change.value > 0
        except (MismatchError, TrackingError) as error:
            decision, is_better = f"not compared with version {before.version}: {error}", False
    client.set_model_version_tag(REGISTERED, version.version, "champion_by", decision)
    if is_better:
        client.set_registered_model_alias(REGISTERED, CHAMPION, version.version)
    return decision


def promote(client: MlflowClient, version: ModelVersion) -> str:
    """Make a version the champion by hand; return what is noted of it."""
    before = champion(client)
    decision = crown(client, version, scores_of(client, version.run_id or "", version.tags[KIND_TAG]))
    if before is not None and before.version != version.version:
        decision = f"promoted by hand ({decision})"
        client.set_model_version_tag(REGISTERED, version.version, "champion_by", decision)
    client.set_registered_model_alias(REGISTERED, CHAMPION, version.version)
    return decision


def download(client: MlflowClient, version: ModelVersion, folder: str) -> str:
    """Copy a version's files into a new folder. Raises TrackingError."""
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise TrackingError(f"expected {folder} to be empty or absent, found files in it; name another folder")
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tracking_errors(f"version {version.version}"):
        model = client.get_logged_model(version.tags["model_id"])
        return download_artifacts(model.artifact_location, dst_path=folder, tracking_uri=client.tracking_uri)


def tracked_run_of(uri: str, run: Run) -> TrackedRun:
    return TrackedRun(uri, run.info.run_id, run.data.tags.get(SNAPSHOT_TAG, ""))


def describe_versions(client: MlflowClient, snapshot_id: str = "") -> list[dict[str, str]]:
    """Return a row per version with where it comes from: run, snapshot, and the runs that made the snapshot."""
    with tracking_errors("the registry"):
        found = [each for each in versions(client) if snapshot_id in ("", each.tags.get(SNAPSHOT_TAG))]
        best = champion(client)
        return [_describe_version(client, each, best) for each in found]


def _describe_version(client: MlflowClient, version: ModelVersion, best: ModelVersion | None) -> dict[str, str]:
    tags, model = version.tags, client.get_logged_model(version.tags["model_id"])
    figures = {metric.key.split("/")[-1]: metric.value for metric in model.metrics or []}
    run = client.get_run(version.run_id or "")
    is_best = best is not None and best.version == version.version
    return {
        "version": f"{version.version}{is_best * f' {CHAMPION}'}",
        "kind": f"{tags[KIND_TAG]}, epoch {tags['epoch']}",
        "mAP": "{mAP:.4f} [{mAP_low:.4f}, {mAP_high:.4f}]".format(**figures) if "mAP_low" in figures else "?",
        "run": run.data.tags.get("run", run.info.run_name or ""),
        "snapshot": tags.get(SNAPSHOT_TAG, ""),
        "made by": ", ".join(preprocessing_runs(client, tags.get(SNAPSHOT_TAG, ""))) or "unknown",
        "champion by": tags.get("champion_by", ""),
    }


def preprocessing_runs(client: MlflowClient, snapshot_id: str) -> list[str]:
    """Return the names of the runs that ended with a snapshot."""
    experiment = client.get_experiment_by_name(PREPROCESSING)
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id], f"tags.{SNAPSHOT_TAG} = '{snapshot_id}'")
    return [run.info.run_name or run.info.run_id for run in runs]
