"""Trainings compared: a table on the terminal, and one page of HTML."""

from pathlib import Path

from ast_model.tracking.comparison import as_text, compare_runs, find_run, render_comparison
from ast_model.tracking.server import connect
from jobs.checkpoints.settings import CompareConfig
from jobs.command_line.cli import resolve_root
from pipeline.store.storage import Store


def compare(config: CompareConfig) -> None:
    client = connect(Store(resolve_root(config.root)))
    sections = compare_runs(client, [find_run(client, run) for run in config.runs])
    print(as_text(sections))
    Path(config.output).write_text(render_comparison(sections, "Trainings compared"), encoding="utf-8")
    print(f"\nthe same with plots: {Path(config.output).resolve()}")
