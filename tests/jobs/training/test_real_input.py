"""The main job on recorded sounds from two Debian packages, with the tables in docs/real-input."""

from pathlib import Path

import pytest

from jobs.audioset import COMMAND_LINE
from jobs.training.audioset import audioset
from pipeline.shards.format import read_sidecar
from pipeline.store.storage import Store

SOUNDS = Path("/usr/share/sounds")
TABLES = Path(__file__).parents[3] / "docs" / "real-input"

needs_sounds = pytest.mark.skipif(
    not all((SOUNDS / folder).is_dir() for folder in ("alsa", "freedesktop")),
    reason="apt-get install alsa-utils sound-theme-freedesktop",
)


@needs_sounds
@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_main_job_learns_from_recorded_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = f"--metadata {TABLES} --media {SOUNDS} --splits balanced_train eval --root {tmp_path}"
    training = "--train.num-epochs 2 --train.average-last-epochs 2 --train.draws-per-epoch 16"
    audioset(COMMAND_LINE.parse(f"{flags} {training}".split()))

    said = capsys.readouterr().out
    assert "balanced_train     13 planned = 13 written + 0 failed" in said
    assert "eval               9 planned = 9 written + 0 failed" in said
    assert "average of the last" in said
    store = Store(str(tmp_path))
    rows = [row for name in store.list("shards", ".parquet") for row in read_sidecar(store, name).to_pylist()]
    num_frames = {row["key"]: row["num_frames"] for row in rows}
    assert num_frames["Side_Left_0"] == 138  # 1.4 s
    assert num_frames["alarm-clock-elapsed_3000"] == 298  # the second half of one recording
    assert {row["key"] for row in rows if row["detail"] == "short"} == {"message_0"}  # planned to 10 s
