"""Turn a checkpoint's scores into probabilities, and choose a threshold for each class.

python jobs/calibrate.py --checkpoint data/demo/runs/RUN/average --root data/demo
python jobs/calibrate.py --checkpoint data/demo/runs/RUN/average --root data/demo --precision 0.9
"""

import sys

import tyro

from jobs.launch.cli import CommandLine
from jobs.launch.config.evaluation import CalibrateConfig


def calibrate() -> CalibrateConfig:
    """Checkpoint and split → calibration.json, reliability.png and a table of thresholds."""
    return CalibrateConfig(checkpoint=tyro.MISSING)


COMMAND_LINE = CommandLine("jobs.launch.calibrate:calibrate_checkpoint", {"calibrate": calibrate})


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
