"""Write a checkpoint for others; it is read back and held against the model before it gets its name.

python jobs/export.py hugging_face --checkpoint CHECKPOINT --output exports/my-ast
python jobs/export.py safetensors --checkpoint CHECKPOINT --output exports/my-ast.safetensors
python jobs/export.py onnx --checkpoint CHECKPOINT --output exports/my-ast.onnx
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from ast_model.export import LOGITS_TOLERANCE, export_hugging_face, export_onnx, export_safetensors
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from jobs.launch.cli import run_job


@dataclass(frozen=True)
class ExportConfig:
    """What to export, and where to."""

    format: tyro.conf.Suppress[str]
    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    output: str
    """The folder or file to write; nothing may be there."""
    labels: str = ""
    """The class_labels_indices.csv of an official .pth, which names no classes."""


def hugging_face() -> ExportConfig:
    """A folder for transformers' AutoModelForAudioClassification and AutoFeatureExtractor."""
    return ExportConfig("hugging_face", checkpoint=tyro.MISSING, output=tyro.MISSING)


def safetensors() -> ExportConfig:
    """One file with config, classes and normalisation in its metadata; ours loads it."""
    return ExportConfig("safetensors", checkpoint=tyro.MISSING, output=tyro.MISSING)


def onnx() -> ExportConfig:
    """One ONNX file for any batch size: normalised fbank to logits. Needs `pip install '.[onnx]'`."""
    return ExportConfig("onnx", checkpoint=tyro.MISSING, output=tyro.MISSING)


FORMATS: dict[str, Callable[[AST, ModelMetadata, Path], None]] = {
    "hugging_face": export_hugging_face,
    "safetensors": lambda model, metadata, file: export_safetensors(model, file, metadata),
    "onnx": export_onnx,
}


def export(config: ExportConfig) -> None:
    """Export a checkpoint and say what was written."""
    tagger = Tagger.load(config.checkpoint, config.labels or None, device="cpu")
    output = Path(config.output)
    FORMATS[config.format](tagger.model, tagger.metadata, output)
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    print("\n".join(f"{file}  {file.stat().st_size:,} bytes" for file in files))
    print(f"read back: the same weights, and logits within {LOGITS_TOLERANCE} of the checkpoint's")


if __name__ == "__main__":
    presets = {"hugging_face": hugging_face, "safetensors": safetensors, "onnx": onnx}
    sys.exit(run_job(export, presets, default_preset="hugging_face"))
