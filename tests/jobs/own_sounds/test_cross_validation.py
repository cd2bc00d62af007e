"""Cross-validation of whole runs: one store, one set of embeddings, and a run with a child per fold."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from jobs.finetune import COMMAND_LINE
from jobs.own_sounds.finetune import store_name
from pipeline.store.layout import EMBEDDINGS
from pipeline.store.storage import Store
from tests.jobs.datasets.test_dataset_commands import write_tone

pytestmark = [pytest.mark.rehearsal, pytest.mark.usefixtures("ray")]

Tones = Callable[[int], Path]


@pytest.fixture
def write_table(tmp_path: Path) -> Tones:
    """Write a table of a low tone, in some rows with noise, and of negative clips; three groups per fold."""
    for index in range(12):
        write_tone(tmp_path / f"{index}.wav", 300 if index % 2 else 3_000, 1.0, 16_000, index)

    def write(num_rows: int) -> Path:
        rows = [f"{index}.wav,{'low' if index % 2 else ''},{index // 2}" for index in range(num_rows)]
        table = tmp_path / "tones.csv"
        table.write_text("\n".join(["path,labels,group", *rows]))
        return table

    return write


def run_folds(table: Path, *flags: str) -> None:
    argv = ["--data", str(table), "--root", str(table.parent / "own"), "--no-use-gpu", "--folds", "2", *flags]
    config = COMMAND_LINE.parse(argv)
    COMMAND_LINE.load(config)(config)


def test_folds_share_embeddings_even_after_clips_were_removed(
    write_table: Tones, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(12)
    store = Store(str(tmp_path / "own" / store_name(str(table))))
    run_folds(table, "--head-only")
    printed = capsys.readouterr().out
    assert "fold1      mAP 1.0000   baseline 1.0000" in printed
    assert "mean       mAP 1.0000 ± 0.0000   baseline 1.0000 ± 0.0000" in printed
    files = store.sizes(EMBEDDINGS)
    assert files
    run_folds(write_table(10), "--head-only")
    assert store.sizes(EMBEDDINGS) == files
    runs = mlflow.MlflowClient(f"sqlite:///{store.root}/mlflow.db").search_runs(
        [each.experiment_id for each in mlflow.MlflowClient(f"sqlite:///{store.root}/mlflow.db").search_experiments()],
        "tags.stage = 'folds'",
    )
    assert len(runs) == 2 and all(run.data.metrics["mAP"] == run.data.metrics["mAP/fold2"] == 1 for run in runs)


def test_all_weights_are_trained_in_folds(write_table: Tones, capsys: pytest.CaptureFixture[str]) -> None:
    run_folds(write_table(12), "--num-epochs", "2", "--batch-size", "3")
    printed = capsys.readouterr().out
    assert "(epoch 2 of 2, the last one)" in printed and "fold2      mAP " in printed
