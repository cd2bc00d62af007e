import codecs
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ray import cloudpickle

from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, save_checkpoint
from ast_model.config import ASTConfig
from ast_model.export import export_hugging_face
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from jobs.predict import COMMAND_LINE
from jobs.tagging.parallel import (
    FILES,
    TAGS,
    Group,
    open_job,
    read_ledger,
    remove_unfinished,
    tag_group,
    tag_in_groups,
)
from jobs.tagging.settings import PredictConfig
from pipeline.audio.decode import encode_flac
from pipeline.sources.listing import MediaFile, list_media_files
from pipeline.store.storage import Store

ROOT = Path(__file__).parents[2]
SHAPE = ASTConfig(3, num_frames=128, freq_stride=16, time_stride=16, width=48, depth=1, num_heads=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "ast"
    torch.manual_seed(0)
    export_hugging_face(AST(SHAPE), ModelMetadata(("Speech", "Dog, barking", "Rain"), -5, 4), folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "deep").mkdir()
    for name, num_samples in (("a.flac", 16_000), ("deep/b.flac", 40_000)):
        noise = np.random.default_rng(num_samples).uniform(-0.3, 0.3, num_samples)
        (folder / name).write_bytes(encode_flac(noise.astype(np.float32)))
    return folder


def run_predict(*argv: object) -> int:
    return COMMAND_LINE.main([str(word) for word in argv])


def test_folder_is_tagged_into_a_table(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    wanted = ("--checkpoint", checkpoint, "--audio", sounds, "--device", "cpu", "--top-k", 2)
    assert run_predict(*wanted, "--format", "csv", "--output", tmp_path / "tags.csv") == 0
    table = pd.read_csv(tmp_path / "tags.csv")
    assert table["file"].tolist() == [f"{sounds}/a.flac"] * 2 + [f"{sounds}/deep/b.flac"] * 2
    assert table["end_s"].tolist() == pytest.approx([0.995, 0.995, 2.495, 2.495])
    assert (table["score"].between(0, 1) & table["label"].isin(["Speech", "Dog, barking", "Rain"])).all()
    assert run_predict(*wanted, "--format", "csv-excel", "--output", tmp_path / "excel.csv") == 0
    assert (tmp_path / "excel.csv").read_bytes() == codecs.BOM_UTF8 + (tmp_path / "tags.csv").read_bytes()
    assert run_predict(*wanted, "--timeline", "--hop-s", 1, "--format", "jsonl", "--output", tmp_path / "t.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    windows = {(row["start_s"], round(row["end_s"], 2)) for row in rows if "b.flac" in row["file"]}
    assert windows == {(0, 1.28), (1, 2.28), (2, 2.5)}


def test_review_formats_write_a_file_per_sound(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    wanted = ("--checkpoint", checkpoint, "--audio", sounds, "--device", "cpu", "--timeline")
    assert run_predict(*wanted, "--format", "raven", "--output", tmp_path) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.flac.selections.txt", "b.flac.selections.txt"]
    assert run_predict(*wanted, "--format", "raven") == 2


def test_bad_files_are_listed_after_the_good_files_are_tagged(
    checkpoint: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    files = (tmp_path / "broken.wav", sounds / "a.flac")
    assert run_predict("--checkpoint", checkpoint, "--device", "cpu", "--audio", *files) == 1
    shown = capsys.readouterr()
    assert f"{sounds}/a.flac\n  0." in shown.out
    assert "1 of 2 files could not be tagged" in shown.err and "broken.wav" in shown.err


def test_weights_that_overflow_end_the_run_with_an_error(
    sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AST(SHAPE)
    torch.nn.init.constant_(model.head.norm.weight, 3e38)
    torch.nn.init.constant_(model.head.norm.bias, -3e38)
    labels = {"mids": ("a", "b", "c"), "names": ("a", "b", "c")}
    description = {"model": dataclasses.asdict(SHAPE), "train": {}, "labels": labels, "mean": -5.0, "std": 4.0}
    name = save_checkpoint(
        Store(str(tmp_path)), "run", Checkpoint(LoopState(1), model.state_dict(), description=description)
    )
    words = ("--checkpoint", tmp_path / name, "--audio", sounds, "--device", "cpu", "--format", "csv")
    assert run_predict(*words, "--output", tmp_path / "tags.csv") == 1
    assert "expected finite scores" in capsys.readouterr().err and not (tmp_path / "tags.csv").exists()


@pytest.mark.slow
def test_each_file_gets_a_plot(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    wanted = ("--checkpoint", checkpoint, "--audio", sounds, "--device", "cpu", "--timeline", "--plot", tmp_path)
    for _ in range(2):
        assert run_predict(*wanted, "--output", tmp_path / "tags.txt") == 0
    assert len(list(tmp_path.glob("*.png"))) == 2  # drawn again, not piled up
    for name in ("a.flac.png", "b.flac.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 1000 and len(picture.convert("RGB").getcolors(10**6) or ()) > 100


@pytest.fixture(scope="module")
def mixed(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A list of sounds and broken files, some of them in a tar."""
    folder = tmp_path_factory.mktemp("mixed")
    content = (sounds / "deep" / "b.flac").read_bytes()
    for number in range(7):
        (folder / f"{number}.flac").write_bytes(content if number % 3 else content[:5_000])
    (folder / "._0.flac").write_bytes(b"left by macOS")
    (folder / os.fsdecode(b"\xff.flac")).write_bytes(content)
    (folder / os.fsdecode(b"\xfe.flac")).write_bytes(b"no sound")
    with tarfile.open(folder / "more.tar", "w") as tar:
        for name, data in {"x/a.flac": content, "y/a.flac": b"no sound", "notes.md": b"text"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (folder / "list.txt").write_text(f"more.tar\n{sounds}/a.flac\nmissing.wav\n")
    return [folder, folder / "list.txt"]


FAILURES = {"0.flac": "truncated", "3.flac": "truncated", "6.flac": "truncated", "missing.wav": "not_found"}
FAILURES |= {"more.tar/y/a.flac": "not_media", "\\udcfe.flac": "not_media"}


@pytest.mark.usefixtures("ray")
def test_tags_on_ray_equal_tags_in_one_process(
    checkpoint: Path, mixed: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("--checkpoint", checkpoint, "--device", "cpu", "--timeline", "--hop-s", 1, "--format", "parquet")
    kept = (*wanted, "--audio", *mixed, "--output", tmp_path / "kept", "--embeddings", "--files-per-task", 3)
    assert run_predict(*kept) == 0
    files = pd.read_parquet(tmp_path / "kept" / FILES).set_index("file")
    failed = files[files["status"] == "failed"]["reason"]
    assert len(files) == 13 and failed.to_dict() == {f"{mixed[0]}/{name}": why for name, why in FAILURES.items()}

    assert run_predict(*wanted, "--audio", *mixed, "--output", tmp_path / "tags.parquet") == 1
    order = ["file", "start_s", "score"]
    alone, parallel = (
        pd.read_parquet(path).sort_values(order, ignore_index=True)
        for path in (tmp_path / "tags.parquet", tmp_path / "kept" / TAGS)
    )
    pd.testing.assert_frame_equal(alone, parallel, atol=1e-5)
    embeddings = pd.read_parquet(tmp_path / "kept" / "embeddings")
    assert len(embeddings) == len(alone) / 3 and len(embeddings["embedding"][0]) == SHAPE.width

    # Only what may pass is tried again, which is what was truncated; nothing else is written.
    before = set(Store(str(tmp_path / "kept")).list(TAGS))
    assert run_predict(*kept) == 0
    files = pd.read_parquet(tmp_path / "kept" / FILES)
    assert files["attempts"].value_counts().to_dict() == {1: 13, 2: 3}
    assert set(Store(str(tmp_path / "kept")).list(TAGS)) == before
    capsys.readouterr()
    assert run_predict(*kept, "--top-k", 2) == 1
    assert "different settings (--top-k)" in capsys.readouterr().err


def config_of(*argv: object) -> PredictConfig:
    return COMMAND_LINE.parse([str(word) for word in argv])


def test_killed_group_is_tagged_again(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    config = config_of("--checkpoint", checkpoint, "--audio", sounds, "--format", "parquet", "--output", tmp_path)
    job = open_job(store, config)
    first, second = (Group((each,), (0,)) for each in list_media_files(config.audio))
    tag_group(first, job)
    tag_group(second, job)
    store.remove(f"{FILES}/{second.group_id}.parquet")
    remove_unfinished(store)
    assert store.list(TAGS) == [f"{TAGS}/{first.group_id}.parquet"]


@pytest.mark.slow
def test_s3_prefix_is_listed_and_read(s3_store: Store, checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    for name in ("deep/b.flac", "a.flac"):
        boto3.client("s3").put_object(Bucket="bucket", Key=f"field/{name}", Body=(sounds / name).read_bytes())
    boto3.client("s3").put_object(Bucket="bucket", Key="field/readme.md", Body=b"text")
    wanted = ("--checkpoint", checkpoint, "--device", "cpu", "--format", "csv", "--output", tmp_path / "tags.csv")
    assert run_predict(*wanted, "--audio", "s3://bucket/field/") == 0
    table = pd.read_csv(tmp_path / "tags.csv")
    assert table["file"].unique().tolist() == ["s3://bucket/field/a.flac", "s3://bucket/field/deep/b.flac"]
    assert run_predict(*wanted, "--audio", "s3://bucket/empty/") == 1

    store, config = Store("s3://bucket/tags"), config_of(*wanted, "--audio", "s3://bucket/field/")
    job = open_job(store, config)
    group = Group(tuple(list_media_files(config.audio)), (0, 0))
    assert tag_group(group, job).total() == 0
    kept = pd.read_parquet(io.BytesIO(store.read_bytes(f"{TAGS}/{group.group_id}.parquet")))
    assert kept["file"].unique().tolist() == table["file"].unique().tolist()


class Deadly(MediaFile):
    """A file that takes down the process that decodes it."""

    @contextmanager
    def open(self) -> Iterator[Path]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield Path(self.file)


@pytest.mark.rehearsal
@pytest.mark.usefixtures("ray")
def test_file_that_kills_its_process_fails_alone(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    config = config_of("--checkpoint", checkpoint, "--audio", sounds, "--format", "parquet", "--output", tmp_path)
    files = [Deadly("deadly", "deadly"), *list_media_files(config.audio)]
    tag_in_groups(files, config)
    ledger = read_ledger(Store(str(tmp_path))).set_index("file")
    assert "the process that tags it died" in ledger["detail"]["deadly"]
    assert (ledger.drop("deadly")["status"] == "tagged").all() and len(ledger) == len(files)


@pytest.mark.rehearsal
@pytest.mark.process
def test_killed_run_resumes_with_the_remaining_files(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    content = (sounds / "a.flac").read_bytes()
    for number in range(2_000):
        (tmp_path / "many" / f"{number:04d}.flac").write_bytes(content if number % 10 else b"no sound")
    words = ["--checkpoint", checkpoint, "--audio", tmp_path / "many", "--format", "parquet", "--files-per-task", 20]
    command = [sys.executable, "jobs/predict.py", *map(str, words), "--output", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    store = Store(str(tmp_path / "out"))
    run = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    while len(store.list(FILES)) < 20:
        assert run.poll() is None, "it ended before its time"
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    done = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in store.list(FILES)}
    assert len(done) < 100
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == done
    files, tags = (pd.read_parquet(tmp_path / "out" / folder) for folder in (FILES, TAGS))
    assert len(files) == files["file"].nunique() == 2_000 and files["status"].value_counts()["tagged"] == 1_800
    assert tags.groupby("file").size().eq(3).all() and tags["file"].nunique() == 1_800
