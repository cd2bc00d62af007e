"""Export a checkpoint to other formats. Each file is read back and verified before it gets its final name."""

from collections.abc import Callable
from pathlib import Path

from ast_model.export import LOGITS_TOLERANCE, export_hugging_face, export_onnx, export_safetensors
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from jobs.checkpoints.settings import ExportConfig

FORMATS: dict[str, Callable[[AST, ModelMetadata, Path], None]] = {
    "hugging_face": export_hugging_face,
    "safetensors": lambda model, metadata, file: export_safetensors(model, file, metadata),
    "onnx": export_onnx,
}


def export(config: ExportConfig) -> None:
    """Export a checkpoint, and print the written files."""
    tagger = Tagger.load(config.checkpoint, config.labels or None, device="cpu")
    output = Path(config.output)
    FORMATS[config.format](tagger.model, tagger.metadata, output)
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    print("\n".join(f"{file}  {file.stat().st_size:,} bytes" for file in files))
    print(f"verified: equal weights, and logits within {LOGITS_TOLERANCE} of the checkpoint's")
