"""Log checkpoints as models that MLflow can load, serve and register."""

import importlib.metadata
import io
import tempfile
import time
import warnings
import wave
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, TensorSpec

from ast_model.evaluation.main_metric import estimate_main_metric
from ast_model.evaluation.predictions import AVERAGE, Predictions
from ast_model.tagging.options import TaggingOptions
from ast_model.tracking.delivery import MODEL_TYPE, find_model
from ast_model.tracking.pyfunc import CHECKPOINT
from ast_model.tracking.registry import register
from ast_model.tracking.run import TrackedRun
from ast_model.tracking.tags import CHECKPOINT_TAG, EPOCH_TAG, SNAPSHOT_TAG, VARIANT_TAG
from pipeline.errors import TrackingError
from pipeline.fbank_settings import SAMPLE_RATE_HZ
from pipeline.store.storage import Store

PACKAGES = ("ast_model", "pipeline")
REQUIRED = (
    "av fsspec huggingface_hub matplotlib mlflow numpy pandas pyarrow requests s3fs safetensors scikit-learn scipy"
    " torch torchaudio"
).split()
"""Packages that a served model imports."""
SERVED_FILES = ("checkpoint.json", "model.safetensors")
"""Files of a checkpoint that tagging needs, without the optimizer's state."""


def signature() -> ModelSignature:
    """Return the inputs, outputs and parameters of a served model."""
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
    params = ParamSchema([ParamSpec("top_k", DataType.long, TaggingOptions.top_k)])
    return ModelSignature(Schema(inputs), Schema(outputs), params)


def input_example() -> tuple[pd.DataFrame, dict[str, int]]:
    """Return an example request: half a second of a 440 Hz tone as WAV bytes, and the parameters."""
    samples = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((samples * 8000).astype("<i2").tobytes())
    return pd.DataFrame({"audio": [out.getvalue()]}), {"top_k": 3}


def requirements() -> list[str]:
    """Pin the packages that a served model imports to their installed versions."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in REQUIRED]


def log_served_model(
    tracked: TrackedRun, variant: str, store: Store, checkpoint: str, predictions: Predictions
) -> ModelVersion:
    """Log a checkpoint as a servable model and register it as a version. Existing models and versions remain unchanged.

    Raises TrackingError if the server or its registry refuses.
    """
    client, name = tracked.client, AVERAGE if variant == AVERAGE else checkpoint.split("/")[-1]
    tags = {CHECKPOINT_TAG: store.url(checkpoint), SNAPSHOT_TAG: tracked.snapshot_id, EPOCH_TAG: str(predictions.epoch)}
    try:
        experiment_id = client.get_run(tracked.run_id).info.experiment_id
        model = find_model(client, experiment_id, tracked.run_id, name)
        if model is None:  # the server was unreachable when the checkpoint was saved
            model = client.create_logged_model(experiment_id, name, tracked.run_id, tags, model_type=MODEL_TYPE)
        if VARIANT_TAG not in model.tags:
            with tempfile.TemporaryDirectory() as folder:
                _save(Path(folder), store, checkpoint, (tracked.run_id, model.model_id))
                client.log_model_artifacts(model.model_id, f"{folder}/model")
            client.log_outputs(tracked.run_id, [LoggedModelOutput(model.model_id, predictions.epoch)])
            _log_interval(client, tracked, model.model_id, variant, predictions)
            client.set_logged_model_tags(model.model_id, {VARIANT_TAG: variant})
        if model.status != LoggedModelStatus.READY:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return register(client, tracked.run_id, model, tags | {VARIANT_TAG: variant})
    except MlflowException as error:
        raise TrackingError(
            f"can't register the {variant} model of run {tracked.run_id} at {tracked.uri}: {error.message}; its"
            f" checkpoint is safe in {store.url(checkpoint)}"
        ) from error


def _save(folder: Path, store: Store, checkpoint: str, ids: tuple[str, str]) -> None:
    run_id, model_id = ids
    (folder / CHECKPOINT).mkdir()
    for name in SERVED_FILES:
        (folder / CHECKPOINT / name).write_bytes(store.read_bytes(f"{checkpoint}/{name}"))
    root = Path(__file__).parents[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow asks for type hints, but the signature replaces them
        save_model(
            folder / "model",
            python_model=str(root / "ast_model" / "tracking" / "pyfunc.py"),
            artifacts={CHECKPOINT: str(folder / CHECKPOINT)},
            code_paths=[str(root / package) for package in PACKAGES],
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=signature(),
            input_example=input_example(),
            pip_requirements=requirements(),
        )


def _log_interval(
    client: MlflowClient, tracked: TrackedRun, model_id: str, variant: str, predictions: Predictions
) -> None:
    bounds = estimate_main_metric(predictions.evaluation).bounds
    now_ms, prefix = int(time.time() * 1000), f"eval/{AVERAGE}" if variant == AVERAGE else "eval"
    client.log_batch(
        tracked.run_id,
        [
            Metric(f"{prefix}/{name}", value, now_ms, predictions.epoch, model_id, run_id=tracked.run_id)
            for name, value in bounds.items()
        ],
    )
