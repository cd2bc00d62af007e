"""MLflow's pages of a local store.

python jobs/ui.py --root data/demo
"""

import sys

from jobs.config import UIConfig
from jobs.launch.cli import CommandLine

COMMAND_LINE = CommandLine("jobs.launch.ui:serve", {"ui": UIConfig})

if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
