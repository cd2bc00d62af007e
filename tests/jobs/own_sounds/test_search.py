"""The command `search`, on the small store and on files."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.data.augment import Normalisation
from ast_model.embeddings.extract import embed_chunk, find_missing, plan_embeddings, plan_statistics
from ast_model.export import export_safetensors
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from jobs.own_sounds.embedding import publish_model
from jobs.search import COMMAND_LINE
from pipeline.audio.decode import encode_flac
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

NORM = Normalisation(-4.0, 4.0)


@pytest.fixture(scope="module")
def checkpoint(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, after embedding the small store with it."""
    torch.manual_seed(0)
    shape = ASTConfig(
        len(snapshot.labels), patch_time=32, freq_stride=16, time_stride=32, width=16, depth=1, num_heads=2
    )
    model = AST(shape).eval()
    file = tmp_path_factory.mktemp("model") / "ast.safetensors"
    export_safetensors(model, file, ModelMetadata(snapshot.labels.names, NORM.mean, NORM.std))
    plan = plan_embeddings(snapshot, model, NORM)
    publish_model(model, plan)
    for rows in find_missing(plan, snapshot):
        embed_chunk(rows, plan)
    return file


def run_search(checkpoint: Path | str, output: Path, *argv: object) -> pd.DataFrame:
    words = ["--checkpoint", str(checkpoint), "--output", str(output), *map(str, argv)]
    assert COMMAND_LINE.main(words) == 0
    return pd.read_csv(output.with_suffix(".csv"), keep_default_na=False)


def test_clip_of_the_store_is_found_by_its_sound(checkpoint: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    row = 5
    sound = tmp_path / "sound <b>.flac"
    waveform = ClipReader(snapshot).read_audio(row).astype(np.float32) / 32768
    sound.write_bytes(encode_flac(waveform))
    page = tmp_path / "found" / "page.html"
    table = run_search(checkpoint, page, "--like", sound, "--root", snapshot.store.root, "--num-results", 4)
    clip, start_ms = snapshot.index["key"].to_pylist()[row].rsplit("_", 1)
    assert (table["clip"][0], table["start_s"][0]) == (clip, int(start_ms) / 1000)
    assert table["cosine"][0] > 0.999 and table["cosine"].is_monotonic_decreasing and len(table) == 4
    names = {snapshot.labels.names[column] for column in snapshot.targets(np.array([row])).indices}
    assert set(table["labels"][0].split("; ")) == names
    html = page.read_text(encoding="utf-8")
    assert len(re.findall(r'<audio controls preload="none" src="data:audio/flac;base64,\w', html)) == 5
    assert "sound <b>" not in html and "sound &lt;b&gt;.flac" in html


def test_search_without_a_checkpoint_compares_statistics_and_skips_the_example(
    snapshot: Snapshot, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    Path(store.root).mkdir()
    for name in ("shards", "snapshots", "latest.json"):
        Path(store.path(name)).symlink_to(snapshot.store.path(name))
    own, plan = dataclasses.replace(snapshot, store=store), plan_statistics(dataclasses.replace(snapshot, store=store))
    for rows in find_missing(plan, own):  # otherwise the search would start Ray
        embed_chunk(rows, plan)
    row, folder = 5, tmp_path / "sounds"
    folder.mkdir()
    for other in (row, row + 1, row + 2):
        waveform = ClipReader(snapshot).read_audio(other).astype(np.float32) / 32768
        (folder / f"{other}.flac").write_bytes(encode_flac(waveform))
    like = ("--like", folder / f"{row}.flac")
    table = run_search("", tmp_path / "page.html", *like, "--root", store.root)
    clip, start_ms = snapshot.index["key"].to_pylist()[row].rsplit("_", 1)
    assert (table["clip"][0], table["start_s"][0]) == (clip, int(start_ms) / 1000)
    assert table["cosine"][0] > 0.99
    assert "by the cosine of their spectral statistics" in (tmp_path / "page.html").read_text(encoding="utf-8")
    table = run_search("", tmp_path / "page.html", *like, "--audio", folder)
    assert set(table["clip"].astype(str)) == {f"{row + 1}", f"{row + 2}"}, "no example is its own neighbour"


def test_search_by_label_excludes_clips_with_the_label(checkpoint: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    label = snapshot.labels.names[int(np.argmax(snapshot.class_counts(("balanced_train", "unbalanced_train"))))]
    table = run_search(checkpoint, tmp_path / "page.html", "--label", label, "--root", snapshot.store.root)
    assert len(table) and not any(label in labels.split("; ") for labels in table["labels"])


def test_files_are_searched_in_windows_and_unreadable_files_skipped(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(np.arange(32_000) * 0.4).astype(np.float32)
    noise = rng.uniform(-0.3, 0.3, 25 * 16_000).astype(np.float32)
    noise[22 * 16_000 : 24 * 16_000] = tone  # in the third window, of 10.24 s each
    folder = tmp_path / "sounds"
    folder.mkdir()
    (folder / "noise.flac").write_bytes(encode_flac(noise))
    (folder / "tone.flac").write_bytes(encode_flac(tone))
    (folder / "text.wav").write_text("no audio")
    query = tmp_path / "query.flac"
    query.write_bytes(encode_flac(tone * 0.9))
    table = run_search(checkpoint, tmp_path / "page.html", "--like", query, "--audio", folder)
    assert Path(table["file"][0]).name == "tone.flac"
    assert sorted(table["start_s"][table["file"].str.endswith("noise.flac")]) == [0, 10.24, 20.48]
    assert table["end_s"].max() == pytest.approx(25, abs=0.03)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected either --like FILE or --label NAME, found none"),
        (["--like", "a.wav", "--label", "dog"], "found both"),
        (["--label", "no/such\nclass"], "expected clips of the class 'no/such"),
        (["--label", "dog", "--output", "page.csv"], r"expected a name that ends with .html"),
    ],
)
def test_invalid_searches_are_rejected(
    argv: list[str], message: str, checkpoint: Path, snapshot: Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND_LINE.main(["--checkpoint", str(checkpoint), "--root", snapshot.store.root, *argv]) > 0
    assert message in capsys.readouterr().err
