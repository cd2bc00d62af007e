"""Compare trainings: a table on the terminal, and one page of HTML to send to a colleague.

python jobs/compare.py RUN RUN… [--root data/audioset] [--output comparison.html]

A RUN is an id of MLflow, a run's name there, or its folder in the store.
"""

import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ast_model.tracking.comparison import as_page, as_text, compare_runs, find_run
from ast_model.tracking.server import check_server, open_client, tracking_uri
from jobs.launch.cli import resolve_root, run_job
from pipeline.errors import ConfigError
from pipeline.store.storage import Store


@dataclass(frozen=True)
class CompareConfig:
    """What to compare."""

    runs: tuple[str, ...] = ()
    """Runs, named first on the command line; each is compared with the first."""
    root: str = "data/demo"
    """Folder or s3:// address of the store; MLFLOW_TRACKING_URI names the server unless its own database is meant."""
    output: str = "comparison.html"
    """File to write the page to."""

    def __post_init__(self) -> None:
        if len(set(self.runs)) < 2:
            raise ConfigError(f"expected at least two runs to compare, found {', '.join(self.runs) or 'none'}")


def compare(config: CompareConfig) -> None:
    uri = tracking_uri(Store(resolve_root(config.root)))
    check_server(uri)
    client = open_client(uri)
    sections = compare_runs(client, [find_run(client, run) for run in config.runs])
    print(as_text(sections))
    Path(config.output).write_text(as_page(sections, "Trainings compared"), encoding="utf-8")
    print(f"\nthe same with pictures: {Path(config.output).resolve()}")


def main(argv: list[str]) -> int:
    runs = tuple(takewhile(lambda arg: not arg.startswith("-"), argv))

    def these() -> CompareConfig:
        """Settings, data, figures with intervals, and classes that gain or lose."""
        return CompareConfig(runs) if "--help" not in argv else CompareConfig(("RUN", "RUN…"))

    return run_job(compare, {"these": these}, default_preset="these", argv=argv[len(runs) :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
