"""Whole runs of the data-set commands, on synthetic sounds in the official layouts."""

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run
from scipy.io import wavfile

import jobs.training.start_or_resume
from ast_model.inference import Tagger
from jobs import esc50, finetune, fsd50k, speechcommands
from jobs.command_line.cli import CommandLine
from jobs.training.runs import TrackedJob
from pipeline.errors import ConfigError, StoppedError

pytestmark = [pytest.mark.rehearsal, pytest.mark.usefixtures("ray")]

SMALL = (
    "--no-use-gpu --model.patch-freq 128 --model.freq-stride 128 --model.time-stride 16 --model.width 32"
    " --model.depth 1 --model.num-heads 2 --num-epochs 40 --learning-rate 4e-3 --schedule.num-epochs-before-decay 40"
    " --global-batch-size 4 --micro-batch-size 4 --augment.mixup-probability 0 --augment.no-noise"
    " --augment.max-freq-mask-bins 0 --augment.max-time-mask-frames 0"
)
PITCHES_HZ = {"dog": 300, "rain, heavy": 1000, "clock": 3500}


def write_tone(file: Path, pitch_hz: float | list[float], seconds: float, rate_hz: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    pitches = np.atleast_1d(pitch_hz) * random.uniform(0.9, 1.1)
    tone = 0.3 * np.sin(2 * np.pi * pitches[:, None] * time_s).sum(axis=0)
    file.parent.mkdir(parents=True, exist_ok=True)
    tone += 0.02 * random.standard_normal(len(time_s))
    wavfile.write(file, rate_hz, (tone * 32767).astype(np.int16))


def run_job(command_line: CommandLine, argv: list[str]) -> None:
    config = command_line.parse(argv)
    command_line.load(config)(config)


@pytest.fixture
def esc50_folder(tmp_path: Path) -> Path:
    """ESC-50's layout with three classes in five folds, two clips each; one file is empty."""
    folder = tmp_path / "ESC-50-master"
    rows = []
    for target, (name, pitch_hz) in enumerate(PITCHES_HZ.items()):
        for fold in range(1, 6):
            for take in "AB":
                file = f"{fold}-{1000 * target + fold}-{take}-{target}.wav"
                write_tone(folder / "audio" / file, pitch_hz, 5, 44_100, len(rows))
                rows.append((file, fold, target, name, "False", 1000 * target + fold, take))
    (folder / "audio" / rows[0][0]).write_bytes(b"")
    (folder / "meta").mkdir()
    with (folder / "meta" / "esc50.csv").open("w", newline="") as table:
        header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
        csv.writer(table).writerows([header, *rows])
    return folder


@pytest.fixture
def words_folder(tmp_path: Path) -> Path:
    """Speech Commands' layout with three words by twelve speakers, two in each list; some clips are short."""
    folder = tmp_path / "speech_commands_v0.02"
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word, pitch_hz in zip(("yes", "no", "up"), PITCHES_HZ.values(), strict=True):
        for speaker in range(12):
            name = f"{word}/{speaker:08x}_nohash_0.wav"
            write_tone(folder / name, pitch_hz, 0.6 if speaker % 3 == 0 else 1, 16_000, speaker)
            if speaker < 4:
                lists[list(lists)[speaker // 2]].append(name)
    write_tone(folder / "_background_noise_" / "pink_noise.wav", 50, 3, 16_000, 0)
    for name, files in lists.items():
        (folder / name).write_text("\n".join(files) + "\n")
    return folder


@pytest.fixture
def fsd50k_folder(tmp_path: Path) -> Path:
    """FSD50K's layout with clips of 0.4 to 14 s that have one or two of three pitches."""
    folder, names = tmp_path / "FSD50K", ["Bark", "Rain", "Tick-tock"]
    tables = folder / "FSD50K.ground_truth"
    tables.mkdir(parents=True)
    (tables / "vocabulary.csv").write_text("".join(f"{index},{name},/m/0{index}\n" for index, name in enumerate(names)))
    pitches = dict(zip(names, PITCHES_HZ.values(), strict=True))
    for part, header, num_clips in (("dev", "fname,labels,mids,split", 24), ("eval", "fname,labels,mids", 9)):
        rows = [header.split(",")]
        for number in range(num_clips):
            labels = [names[number % 3]] if number % 2 else [names[number % 3], names[(number + 1) % 3]]
            file = folder / f"FSD50K.{part}_audio" / f"{number}.wav"
            write_tone(file, [pitches[label] for label in labels], (0.4, 3, 14)[number % 5 % 3], 44_100, number)
            row = [str(number), ",".join(labels), ",".join(f"/m/0{names.index(label)}" for label in labels)]
            rows.append([*row, "val" if number < 6 else "train"][: len(rows[0])])
        with (tables / f"{part}.csv").open("w", newline="") as table:
            csv.writer(table).writerows(rows)
    return folder


def runs_of(root: Path, experiment: str = "audioset-ast") -> list[Run]:
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])


def stop_once(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Raise StoppedError instead of the first training of the run with this ending."""
    train: Callable = jobs.training.start_or_resume.train_on_ray
    stopped = []

    def train_on_ray(job: TrackedJob, *settings):
        if job.run.endswith(ending) and not stopped:
            stopped.append(job.run)
            raise StoppedError(f"resume with --resume {job.run}")
        return train(job, *settings)

    monkeypatch.setattr(jobs.training.start_or_resume, "train_on_ray", train_on_ray)


def test_esc50_folds_are_children_of_one_run_even_after_a_stop(
    esc50_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "store"
    flags = f"--data {esc50_folder} --root {root} --folds 1 2 3 {SMALL}".split()

    def run(*more: str) -> None:
        run_job(esc50.COMMAND_LINE, [*flags, *more])

    stop_once(monkeypatch, "-fold2")
    with pytest.raises(StoppedError) as stopped:
        run()
    with pytest.raises(ConfigError, match="expected a run of folds named esc50-none"):
        run("--resume", "esc50-none")
    run("--resume", str(stopped.value).split()[-1])

    parent, *folds = runs_of(root)
    assert [fold.info.status for fold in folds] == ["FINISHED"] * 3
    assert {fold.data.tags["mlflow.parentRunId"] for fold in folds} == {parent.info.run_id}
    assert [fold.data.params["train.eval_split"] for fold in folds] == ["fold1", "fold2", "fold3"]
    result = json.loads((root / "esc50.json").read_text())
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["accuracy"] == pytest.approx(result["accuracy"])
    assert parent.data.metrics["accuracy/fold2"] == pytest.approx(folds[1].data.metrics["eval/accuracy"])
    assert result["accuracy"] > 0.6, "three pitches are easy to distinguish"
    printed = capsys.readouterr().out
    assert f"mean       accuracy {result['accuracy']:.4f} ± {result['deviation']:.4f}   (epoch 40 of 40" in printed


def test_speech_commands_chooses_on_validation_and_scores_the_testing_list(
    words_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "store"
    flags = f"--data {words_folder} --root {root} {SMALL}".split()
    run_job(speechcommands.COMMAND_LINE, flags)
    result = json.loads((root / "speechcommands.json").read_text())
    assert result["test"] > 0.6
    assert f"test       accuracy {result['test']:.4f}" in capsys.readouterr().out
    (run,) = runs_of(root)
    assert run.data.metrics["eval/accuracy"] >= 0.5
    assert run.data.params["train.eval_split"] == "valid"


def test_fsd50k_chooses_on_validation_and_scores_the_evaluation_set(
    fsd50k_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "store"
    run_job(fsd50k.COMMAND_LINE, f"--data {fsd50k_folder} --root {root} {SMALL}".split())
    result = json.loads((root / "fsd50k.json").read_text())
    assert result["test"] > 0.6
    assert f"test       mAP {result['test']:.4f}" in capsys.readouterr().out
    (run,) = runs_of(root)
    assert run.data.metrics["eval/mAP"] > 0.6
    assert (run.data.params["train.eval_split"], run.data.params["train.augment.random_crop"]) == ("valid", "True")


@pytest.mark.parametrize("form", ["folder", "table"])
def test_finetune_trains_and_prints_a_tagging_command(
    form: str, words_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, files = words_folder, sorted(words_folder.glob("[!_]*/*.wav"))
    if form == "table":
        data = tmp_path / "sounds.csv"
        rows = [(file.relative_to(tmp_path), f"{file.parent.name};tone") for file in files]
        rows[0] = (rows[0][0], "silence")
        rows[1] = (rows[1][0], "silence;tone")
        with data.open("w", newline="") as table:
            csv.writer(table).writerows([("path", "labels"), *rows])
    root = f"{tmp_path}/elsewhere/../own"
    flags = f"--data {data} --root {root} --no-use-gpu --size tiny --num-epochs 2 --learning-rate 1e-3".split()
    run_job(finetune.COMMAND_LINE, flags)
    printed = capsys.readouterr().out
    assert ("eval/accuracy" in printed) == (form == "folder")
    best = next(line.split()[-1] for line in printed.splitlines() if line.startswith("best epoch"))
    (command,) = [line for line in printed.splitlines() if "jobs/predict.py" in line]
    assert ".." not in command
    words = shlex.split(command.removeprefix("tag with"))
    assert words[:3] == ["python", "jobs/predict.py", "--checkpoint"] and words[-1] == "FILES"
    assert Tagger.load(words[3], device="cpu").labels
    labels = json.loads((Path(best) / "checkpoint.json").read_text())["labels"]["names"]
    assert labels == (["no", "up", "yes"] if form == "folder" else ["no", "silence", "tone", "up", "yes"])
