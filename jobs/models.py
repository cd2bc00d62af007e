"""Manage registered models: list, compare, promote, fetch, export, publish.

python jobs/models.py list [--snapshot ID]
python jobs/models.py compare --version 3 --against champion
python jobs/models.py promote --version 3
python jobs/models.py fetch --version champion --to FOLDER
python jobs/models.py export --version champion --to FOLDER --licence cc-by-4.0
python jobs/models.py publish --run RUN
"""

import sys

from jobs.checkpoints.settings import CompareVersions, ExportVersion, FetchModel, ListModels, PromoteVersion, PublishRun
from jobs.command_line.cli import CommandLine

COMMAND_LINE = CommandLine(
    {
        ListModels: "jobs.checkpoints.models:list_models",
        CompareVersions: "jobs.checkpoints.models:compare",
        PromoteVersion: "jobs.checkpoints.models:promote_model",
        FetchModel: "jobs.checkpoints.models:fetch",
        ExportVersion: "jobs.checkpoints.models:export_version",
        PublishRun: "jobs.checkpoints.models:publish_run",
    },
    {
        "list": ListModels,
        "compare": CompareVersions,
        "promote": PromoteVersion,
        "fetch": FetchModel,
        "export": ExportVersion,
        "publish": PublishRun,
    },
)


if __name__ == "__main__":
    sys.exit(COMMAND_LINE.main(sys.argv[1:]))
