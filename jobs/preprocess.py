"""Preprocess AudioSet into a store: fetch, convert, verify, measure and report.

python jobs/preprocess.py run --media youtube --root /data/audioset
python jobs/preprocess.py plan|status|verify|measure|duplicates --root /data/audioset …
python jobs/preprocess.py report --root /data/audioset --output report.html
python jobs/preprocess.py compare --first /data/copy --second /data/other
python jobs/preprocess.py snapshots list|diff|prune --root /data/audioset …
"""

import sys

from jobs.command_line.cli import CommandLine
from jobs.preprocessing.settings import (
    CompareCommand,
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
        RunCommand: "jobs.preprocessing.commands:run",
        PlanCommand: "jobs.preprocessing.commands:plan",
        StatusCommand: "jobs.preprocessing.commands:status",
        VerifyCommand: "jobs.preprocessing.commands:verify",
        MeasureCommand: "jobs.preprocessing.commands:measure",
        ReportCommand: "jobs.preprocessing.report:write_report",
        CompareCommand: "jobs.preprocessing.compare:compare",
        DuplicatesCommand: "jobs.preprocessing.duplicates:find_duplicates",
        ListSnapshots: "jobs.preprocessing.snapshots:print_snapshots",
        DiffSnapshots: "jobs.preprocessing.snapshots:print_difference",
        PruneSnapshots: "jobs.preprocessing.snapshots:remove_snapshots",
    },
    {
        "run": RunCommand,
        "plan": PlanCommand,
        "status": StatusCommand,
        "verify": VerifyCommand,
        "measure": MeasureCommand,
        "report": ReportCommand,
        "compare": CompareCommand,
        "duplicates": DuplicatesCommand,
        "snapshots list": ListSnapshots,
        "snapshots diff": DiffSnapshots,
        "snapshots prune": PruneSnapshots,
    },
)


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
