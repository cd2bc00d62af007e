"""MLflow's pages of a local store.

python jobs/ui.py --root data/demo
"""

import sys

from jobs.launch.cli import CommandLine
from jobs.launch.config.models import UIConfig

COMMAND_LINE = CommandLine("jobs.launch.ui:serve", {"ui": UIConfig})

if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
