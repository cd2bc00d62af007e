"""The command `report`, which describes the clips of a snapshot."""

import json
from pathlib import Path

from jobs.command_line.cli import resolve_root
from jobs.preprocessing.settings import ReportCommand
from pipeline.errors import ConfigError
from pipeline.quality.report import make_report
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store


def write_report(command: ReportCommand) -> None:
    if command.output.suffix != ".html":
        raise ConfigError(f"expected --output FILE.html, found {command.output}; the JSON file is written next to it")
    store = Store(resolve_root(command.root))
    snapshot = load_snapshot(store, command.snapshot or None)
    against = load_snapshot(store, command.against) if command.against else None
    advice = save_report(command.output, snapshot, against)
    for place, each in enumerate(advice, 1):
        print(f"{place}. {each['text']} {each['do']}".rstrip())
    print(f"{command.output} and {command.output.with_suffix('.json')}: snapshot {snapshot.snapshot_id}")


def save_report(file: Path, snapshot: Snapshot, against: Snapshot | None = None) -> list[dict[str, str]]:
    """Write a report as an HTML file, and as a JSON file next to it. Return its advice."""
    report, page = make_report(snapshot, against)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
    file.with_suffix(".json").write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")
    return report["advice"]
