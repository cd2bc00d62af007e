"""Compare training runs in a table on the terminal and on an HTML page."""

from pathlib import Path

from ast_model.evaluation.result_files import PREDICTIONS_FILE
from ast_model.tracking.comparison import compare_runs, format_comparison, render_comparison
from ast_model.tracking.run_results import find_run
from ast_model.tracking.server import connect
from jobs.checkpoints.settings import CompareConfig
from jobs.command_line.cli import resolve_root
from pipeline.store.storage import Store


def compare(config: CompareConfig) -> None:
    """Print the comparison, and write it with plots to `config.output`."""
    client = connect(Store(resolve_root(config.root)))
    compared = [Path(run) if (Path(run) / PREDICTIONS_FILE).exists() else find_run(client, run) for run in config.runs]
    sections = compare_runs(client, compared)
    print(format_comparison(sections))
    Path(config.output).write_text(render_comparison(sections, "Comparison of trainings"), encoding="utf-8")
    print(f"\nwith plots: {Path(config.output).resolve()}")
