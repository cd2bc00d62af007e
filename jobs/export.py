"""Export a checkpoint to other formats. Each export is read back and compared with the model.

python jobs/export.py hugging_face --checkpoint CHECKPOINT --output exports/my-ast
python jobs/export.py safetensors --checkpoint CHECKPOINT --output exports/my-ast.safetensors
python jobs/export.py onnx --checkpoint CHECKPOINT --output exports/my-ast.onnx
"""

import sys

import tyro

from jobs.checkpoints.settings import ExportConfig
from jobs.command_line.cli import CommandLine


def hugging_face() -> ExportConfig:
    """Write a folder for transformers' AutoModelForAudioClassification and AutoFeatureExtractor."""
    return ExportConfig("hugging_face", checkpoint=tyro.MISSING, output=tyro.MISSING)


def safetensors() -> ExportConfig:
    """Write one file with config, classes and normalisation in its metadata, for `Tagger.load`."""
    return ExportConfig("safetensors", checkpoint=tyro.MISSING, output=tyro.MISSING)


def onnx() -> ExportConfig:
    """Write an ONNX file from normalised fbanks to logits, for any batch size. Needs `pip install '.[onnx]'`."""
    return ExportConfig("onnx", checkpoint=tyro.MISSING, output=tyro.MISSING)


COMMAND_LINE = CommandLine(
    "jobs.checkpoints.export:export", {"hugging_face": hugging_face, "safetensors": safetensors, "onnx": onnx}
)


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
