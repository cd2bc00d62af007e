import dataclasses
import io
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard

from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, save_checkpoint
from ast_model.config import ASTConfig
from ast_model.evaluation.main_metric import compute_difference
from ast_model.evaluation.predictions import Predictions
from ast_model.inference import Tagger
from ast_model.metrics import mean_average_precision_change, tagging_metrics
from ast_model.model import AST
from ast_model.tracking import delivery as tracking_delivery
from ast_model.tracking.promotion import promote_if_better
from ast_model.tracking.registry import find_champion
from ast_model.tracking.run import start_run
from ast_model.tracking.served_model import input_example, log_served_model
from jobs.compare import COMMAND_LINE as COMPARE
from jobs.models import COMMAND_LINE as MODELS
from pipeline.audio.decode import decode_file
from pipeline.errors import TrackingError
from pipeline.fbank import compute_fbank
from pipeline.store.storage import Store

pytestmark = pytest.mark.slow  # each test uses the versions that the tests before it created

NAMES = ("Male speech, man & (singing)", "Siren", "Music")


def make_scores(noise: float) -> Predictions:
    random = np.random.default_rng(0)
    targets = random.random((60, len(NAMES))) < 0.3
    values = targets + noise * random.normal(size=targets.shape)
    keys = np.array([f"clip_{n}" for n in range(len(targets))])
    return Predictions(keys, np.array(NAMES), np.array(NAMES), values, targets, np.arange(len(NAMES)), 1)


def keep(scores: Predictions, folder: Path) -> None:
    out = io.BytesIO()
    np.savez(out, **{field.name: getattr(scores, field.name) for field in dataclasses.fields(scores)})
    folder.mkdir(exist_ok=True)
    (folder / "scores.npz").write_bytes(out.getvalue())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def checkpoint(store: Store) -> str:
    torch.manual_seed(0)
    config = ASTConfig(num_classes=len(NAMES), num_frames=64, width=32, depth=1, num_heads=2)
    labels = {"mids": NAMES, "names": NAMES}
    description = {"model": dataclasses.asdict(config), "train": {}, "labels": labels, "mean": -4.0, "std": 4.0}
    return save_checkpoint(
        store, "runs/r/checkpoints", Checkpoint(LoopState(1), AST(config).state_dict(), description=description)
    )


def test_champion_only_improves_and_serves_the_same_tags_as_the_tagger(
    store: Store, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_delivery, "QUEUES", tmp_path / "queues")
    decisions, best = [], []
    for noise in (0.8, 2.0, 0.2, 0.19):
        run = start_run(store, f"noise {noise}", {})
        run.log_params({"train.noise": str(noise), "train.seed": "0"})
        run.log_metrics({"baseline/mAP": 0.4321}, step=0)
        scores = make_scores(noise)
        keep(scores, tmp_path / "scores")
        run.log_files(tmp_path / "scores", "evaluations/best")
        version = log_served_model(run, "best", store, checkpoint, scores)
        assert log_served_model(run, "best", store, checkpoint, scores).version == version.version
        decisions.append(promote_if_better(run.client, version, scores))
        now = find_champion(run.client)
        assert now is not None
        best.append(int(now.version))
        run.end("FINISHED")
    assert best == [1, 1, 3, 3]
    verdicts = ["the first", "clearly worse", "clearly better", "no clear difference"]
    assert [decision.split(",")[0] for decision in decisions] == verdicts

    model = mlflow.pyfunc.load_model(find_champion(run.client).source)  # pyright: ignore
    (frame, _), tagger = input_example(), Tagger.load(store.url(checkpoint))
    sound = frame["audio"][0]
    (tmp_path / "sound.wav").write_bytes(sound)
    expected = tagger.tag(sound)
    fbank_TM = compute_fbank(torch.from_numpy(decode_file(sound)))
    for given in ({"audio": [sound]}, {"path": [str(tmp_path / "sound.wav")]}, {"fbank": [fbank_TM.tolist()]}):
        found = model.predict(pd.DataFrame(given))
        assert list(found["tags"][0]) == [name for name, _ in expected]
        assert list(found["scores"][0]) == pytest.approx([score for _, score in expected], abs=1e-5)
    assert list(model.predict(pd.DataFrame({"audio": [sound]}), params={"top_k": 1})["tags"][0]) == [expected[0][0]]
    with pytest.raises(mlflow.MlflowException, match="DecodeError"):
        model.predict(pd.DataFrame({"audio": [b"no sound"]}))


def test_versions_are_listed_compared_promoted_and_fetched(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: str) -> str:
        assert MODELS.main([*words, "--root", store.root]) == 0
        return capsys.readouterr().out

    assert [line.split()[:2] for line in say("list").splitlines()[1:]] == [
        ["4", "best,"],
        ["3", "champion"],
        ["2", "best,"],
        ["1", "best,"],
    ]
    assert say("list", "--snapshot", "another") == "no model yet\n"
    change = compute_difference(make_scores(0.2), make_scores(2.0))
    assert change.value == pytest.approx(
        make_scores(0.2).evaluation.metrics.mAP - make_scores(2.0).evaluation.metrics.mAP
    )
    assert say("compare", "--version", "3", "--against", "2") == f"version 3 minus version 2: {change}\n"
    assert say("promote", "--version", "2").startswith(
        "version 2 is the champion: promoted by hand (clearly worse, mAP -"
    )
    exported = say("export", "--version", "3", "--to", str(tmp_path / "my-ast"), "--licence", "cc-by-4.0")
    assert exported == f"version 3: {tmp_path / 'my-ast'}\n"
    assert {file.name for file in (tmp_path / "my-ast").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    card = (tmp_path / "my-ast" / "README.md").read_text()
    about: Any = ModelCard(card).data
    metrics = make_scores(0.2).evaluation.metrics
    assert about.license == "cc-by-4.0" and about.pipeline_tag == "audio-classification"
    assert about.eval_results and about.eval_results[0].metric_value == pytest.approx(metrics.mAP, abs=1e-4)
    assert f"| mAP | {metrics.mAP:.4f} (" in card and "| train.noise | 0.2 |" in card
    assert "| mAP of the baseline, decision trees on spectral statistics | 0.4321 |" in card
    assert Tagger.load(tmp_path / "my-ast").labels == NAMES
    say("fetch", "--to", str(tmp_path / "model"))
    assert (tmp_path / "model" / "artifacts" / "checkpoint" / "model.safetensors").is_file()
    assert MODELS.main(["fetch", "--to", str(tmp_path / "model"), "--root", store.root]) == 1
    assert MODELS.main(["compare", "--version", "7", "--root", store.root]) == 1
    assert "found '7'; existing versions: 4, 3, 2, 1" in capsys.readouterr().err


def test_comparison_of_two_runs_is_one_self_contained_page(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "comparison.html"
    assert COMPARE.main(["noise 2.0", "noise 0.2", "--root", store.root, "--output", str(page)]) == 0
    text, html = capsys.readouterr().out, page.read_text()
    assert "train.noise" in text and "train.seed" not in text
    good, bad = (make_scores(noise).evaluation.metrics for noise in (0.2, 2.0))
    for value in ("0.4321", f"{good.mAP:.4f}", f"{bad.mAP:.4f}", f"{good.average_precision[0]:.3f}"):
        assert value in text and value in html
    assert NAMES[0] in text and "Male speech, man &amp; (singing)" in html
    assert html.count("<img") == 1 and 'src="data:image/png' in html and "http:" not in html and "https:" not in html
    assert COMPARE.main(["noise 2.0", "noise 7", "--root", store.root]) == 1
    assert "named 'noise 7', found 0. The newest are: " in capsys.readouterr().err
    assert COMPARE.main(["noise 2.0", "--root", store.root]) == 2


def test_registry_error_names_the_checkpoint(
    store: Store, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_delivery, "QUEUES", tmp_path / "queues")
    run = start_run(store, "no permission", {})

    def refuse(*args, **kwargs) -> None:
        raise mlflow.MlflowException("Permission denied")

    monkeypatch.setattr(run.client, "create_model_version", refuse)
    with pytest.raises(TrackingError, match=r"Permission denied; its checkpoint is safe in .*epoch-0001"):
        log_served_model(run, "best", store, checkpoint, make_scores(1.0))
    run.end("FINISHED")


def test_change_in_map_has_the_sign_and_the_interval_of_paired_resamples() -> None:
    good, bad = make_scores(0.3), make_scores(1.5)
    value, low, high = mean_average_precision_change(bad.scores, good.scores, good.targets)
    assert value == good.evaluation.metrics.mAP - tagging_metrics(bad.scores, bad.targets).mAP
    assert 0 < low < value < high
    assert mean_average_precision_change(bad.scores, bad.scores, bad.targets) == (0, 0, 0)
