"""Tag audio files with a trained model.

python jobs/predict.py --checkpoint data/demo/runs/RUN/average --audio dog.wav recordings/
python jobs/predict.py --checkpoint MIT/ast-finetuned-audioset-10-10-0.4593 --audio street.flac --timeline
python jobs/predict.py --checkpoint CHECKPOINT --audio s3://bucket/field/ --format parquet --output tags/
python jobs/predict.py --checkpoint audioset_10_10_0.4593.pth --labels class_labels_indices.csv --audio a.wav
"""

import sys

import tyro

from jobs.command_line.cli import CommandLine
from jobs.tagging.settings import PredictConfig


def tag_files() -> PredictConfig:
    """Write a table of each file's best classes. Accepts files, folders, tars and lists, up to millions of files."""
    return PredictConfig(checkpoint=tyro.MISSING, audio=tyro.MISSING)


COMMAND_LINE = CommandLine("jobs.tagging.predict:predict", {"tag_files": tag_files})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
