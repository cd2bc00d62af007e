"""Calibrate a checkpoint on the small store, and tag with the calibration."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.export import export_safetensors
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from jobs.calibrate import COMMAND_LINE
from pipeline.audio.decode import encode_flac
from pipeline.errors import ConfigError, InputError
from pipeline.snapshots.snapshot import Snapshot


@pytest.fixture(scope="module")
def checkpoint(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ASTConfig(
        len(snapshot.labels), patch_time=32, freq_stride=16, time_stride=32, width=16, depth=1, num_heads=2
    )
    file = tmp_path_factory.mktemp("model") / "ast.safetensors"
    export_safetensors(AST(config), file, ModelMetadata(snapshot.labels.names, -4.0, 4.0))
    return file


@pytest.mark.slow
def test_calibration_is_stored_with_the_weights_and_used_by_the_tagger(
    checkpoint: Path, snapshot: Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"jobs/calibrate\.py"):
        Tagger.load(checkpoint, calibrated=True)
    wanted = ["--checkpoint", str(checkpoint), "--root", snapshot.store.root, "--split", "unbalanced_train"]
    assert COMMAND_LINE.main(wanted) == 0
    assert "calibration error" in capsys.readouterr().out
    names = {file.name for file in checkpoint.parent.iterdir()}
    assert names == {"ast.safetensors", "calibration.json", "reliability.png", "thresholds.csv"}
    written = [checkpoint.parent / name for name in ("calibration.json", "thresholds.csv")]
    assert written[0].stat().st_mode == written[1].stat().st_mode, "all files have the same permissions"
    sound = encode_flac(np.random.default_rng(0).uniform(-0.3, 0.3, 16_000).astype(np.float32))
    plain, calibrated = Tagger.load(checkpoint, device="cpu"), Tagger.load(checkpoint, device="cpu", calibrated=True)
    calibration = calibrated.scorer.calibration
    assert calibration is not None
    scores = plain.scores([sound])
    np.testing.assert_array_equal(calibrated.scores([sound]), calibration.apply(scores))
    present = {snapshot.labels.names[column] for column in np.flatnonzero(calibration.decide(scores)[0])}
    assert {label for label, _ in calibrated.present(sound)} == present
    with pytest.raises(ConfigError, match="calibrated=True"):
        plain.present(sound)


def test_invalid_settings_are_rejected(checkpoint: Path, snapshot: Snapshot) -> None:
    wanted = ["--checkpoint", str(checkpoint), "--root", snapshot.store.root]
    assert COMMAND_LINE.main([*wanted, "--precision", "1.5"]) == 2
    assert COMMAND_LINE.main(["--checkpoint", "MIT/none", "--root", snapshot.store.root]) == 2
