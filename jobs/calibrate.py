"""Calibrate the scores of a checkpoint, and choose a threshold per class.

python jobs/calibrate.py --checkpoint data/demo/runs/RUN/average --root data/demo
python jobs/calibrate.py --checkpoint data/demo/runs/RUN/average --root data/demo --precision 0.9
"""

import sys

import tyro

from jobs.checkpoints.settings import CalibrateConfig
from jobs.command_line.cli import CommandLine


def calibrate() -> CalibrateConfig:
    """Fit a calibration on a split, and write calibration.json, reliability.png and a table of thresholds."""
    return CalibrateConfig(checkpoint=tyro.MISSING)


COMMAND_LINE = CommandLine("jobs.checkpoints.calibrate:calibrate_checkpoint", {"calibrate": calibrate})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
