"""Evaluate a checkpoint or an ensemble on a split of a snapshot.

python jobs/evaluate.py --root data/demo --checkpoints data/demo/runs/RUN/average
python jobs/evaluate.py --root data/audioset --checkpoints MIT/ast-finetuned-audioset-{10-10-0.4593,16-16-0.442}
"""

import sys

import tyro

from jobs.checkpoints.settings import EvaluateConfig
from jobs.command_line.cli import CommandLine


def score() -> EvaluateConfig:
    """Write metrics, scores, a table per class and plots for one or more checkpoints."""
    return EvaluateConfig(checkpoints=tyro.MISSING)


COMMAND_LINE = CommandLine("jobs.checkpoints.evaluate:evaluate_checkpoints", {"score": score})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
