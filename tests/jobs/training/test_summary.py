import dataclasses
import shlex

import pytest

from ast_model.checkpoints.async_writer import BEST_FILE
from jobs.evaluate import COMMAND_LINE
from jobs.training.summary import RunSummary, print_report
from pipeline.preprocess import PreprocessReport
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store


def test_summary_reports_accuracy_and_the_evaluated_split(
    snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path_factory.mktemp("report")))
    store.write_json(f"runs/run/checkpoints/{BEST_FILE}", {"name": "runs/run/checkpoints/epoch-1", "score": 0.75})
    figures = {"mAP": 0.5, "auc": 0.9, "d_prime": 1.2}
    history = [
        {"epoch": 1.0, "eval/accuracy": 0.75, **{f"eval/{name}": value for name, value in figures.items()}},
        {"epoch": 2.0, **{f"eval/{name}": value for name, value in figures.items()}},
    ]
    here = dataclasses.replace(snapshot, store=store)
    print_report(RunSummary(here, PreprocessReport(), "run", history, "balanced_train", "sqlite:///mlflow.db"))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "epoch 1              accuracy 0.750   mAP 0.500   AUC 0.900   d' 1.20" in lines
    assert "epoch 2              mAP 0.500   AUC 0.900   d' 1.20" in lines
    (command,) = (line.partition("jobs/evaluate.py")[2] for line in lines if line.startswith("evaluate again"))
    assert COMMAND_LINE.parse(shlex.split(command)).split == "balanced_train"
