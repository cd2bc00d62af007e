"""Serve MLflow's pages for a local store.

python jobs/ui.py --root data/demo
"""

import sys

from jobs.checkpoints.settings import UIConfig
from jobs.command_line.cli import CommandLine

COMMAND_LINE = CommandLine("jobs.checkpoints.ui:serve", {"ui": UIConfig})

if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
