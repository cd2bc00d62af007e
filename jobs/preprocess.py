"""Get AudioSet and keep it up to date.

python jobs/preprocess.py run --media youtube --root /data/audioset
python jobs/preprocess.py plan|status|verify|measure|duplicates --root /data/audioset …
python jobs/preprocess.py report --root /data/audioset --output report.html
python jobs/preprocess.py snapshots list|diff|prune --root /data/audioset …
"""

import sys

from jobs.launch.cli import CommandLine
from jobs.launch.config.preprocess import (
    DiffSnapshots,
    DuplicatesCommand,
    ListSnapshots,
    MeasureCommand,
    PlanCommand,
    PruneSnapshots,
    ReportCommand,
    RunCommand,
    StatusCommand,
    VerifyCommand,
)

COMMAND_LINE = CommandLine(
    {
        RunCommand: "jobs.launch.preprocess:run",
        PlanCommand: "jobs.launch.preprocess:plan",
        StatusCommand: "jobs.launch.preprocess:status",
        VerifyCommand: "jobs.launch.preprocess:verify",
        MeasureCommand: "jobs.launch.preprocess:measure",
        ReportCommand: "jobs.launch.quality:write_report",
        DuplicatesCommand: "jobs.launch.duplicates:find_duplicates",
        ListSnapshots: "jobs.launch.snapshots:print_snapshots",
        DiffSnapshots: "jobs.launch.snapshots:print_difference",
        PruneSnapshots: "jobs.launch.snapshots:remove_snapshots",
    },
    {
        "run": RunCommand,
        "plan": PlanCommand,
        "status": StatusCommand,
        "verify": VerifyCommand,
        "measure": MeasureCommand,
        "report": ReportCommand,
        "duplicates": DuplicatesCommand,
        "snapshots list": ListSnapshots,
        "snapshots diff": DiffSnapshots,
        "snapshots prune": PruneSnapshots,
    },
)


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
