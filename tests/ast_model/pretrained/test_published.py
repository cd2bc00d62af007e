"""Load random weights in the official layout with the published numbers of classes and lengths."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.evaluation.ensemble import score_checkpoints
from ast_model.export import export_hugging_face, export_safetensors
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.layouts import TIMM, to_layout
from ast_model.pretrained.load import load_pretrained
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.pretrained.published import ESC50, PUBLISHED, SPEECH_COMMANDS, PublishedData, published_shapes
from pipeline.errors import ConfigError, MismatchError
from pipeline.labels import Labels
from pipeline.snapshots.snapshot import Snapshot

NAMED = [ESC50, SPEECH_COMMANDS]
by_title = pytest.mark.parametrize("data", NAMED, ids=lambda data: data.title)


def write_official(folder: Path, num_classes: int, num_frames: int) -> tuple[Path, AST]:
    """Write random weights in the official layout. Return the file and the model."""
    torch.manual_seed(num_classes)
    model = AST(ASTConfig(num_classes, num_frames, width=64, depth=1, num_heads=1)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tensors = to_layout(model.state_dict(), TIMM, 1, "v.")
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, folder / "official.pth")
    return folder / "official.pth", model


def labels_of(names: tuple[str, ...]) -> Labels:
    return Labels(tuple(f"/m/{name}" for name in names), names)


def test_lists_of_classes_are_official() -> None:
    at = {0: "backward", 1: "follow", 2: "five", 16: "forward", 33: "go", 34: "one"}
    assert {index: SPEECH_COMMANDS.labels[index] for index in at} == at
    at = {0: "dog", 11: "sea_waves", 20: "crying_baby", 37: "clock_alarm", 49: "hand_saw"}
    assert {index: ESC50.labels[index] for index in at} == at
    for data in NAMED:
        assert len(set(data.labels)) == len(data.labels) == data.num_classes


def test_published_shapes_differ_in_their_number_of_patches() -> None:
    shapes = list(published_shapes(ASTConfig()))
    assert len({shape.num_patches for shape in shapes}) == len(shapes) == 4 * len(PUBLISHED)


@by_title
def test_official_weights_tag_and_export(tmp_path: Path, data: PublishedData) -> None:
    file, model = write_official(tmp_path, data.num_classes, data.num_frames)
    tagger = Tagger.load(file, device="cpu")
    assert tagger.model.config == model.config
    assert tagger.metadata == ModelMetadata(data.labels, data.mean, data.std, data.loss)
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000)
    expected = Tagger(model, tagger.metadata, "cpu").scores([sound])
    np.testing.assert_array_equal(tagger.scores([sound]), expected)
    export_hugging_face(tagger.model, tagger.metadata, tmp_path / "folder")
    export_safetensors(tagger.model, tmp_path / "ast.safetensors", tagger.metadata)
    for name in ("folder", "ast.safetensors"):
        exported = Tagger.load(tmp_path / name, device="cpu")
        assert exported.metadata == tagger.metadata
        np.testing.assert_allclose(exported.scores([sound]), expected, atol=1e-5)


@by_title
def test_evaluation_of_official_weights_matches_classes_by_name(
    tmp_path: Path, data: PublishedData, snapshot: Snapshot
) -> None:
    file, _ = write_official(tmp_path, data.num_classes, data.num_frames)
    names = tuple(sorted(data.labels))  # the order of a folder listing
    sorted_snapshot = dataclasses.replace(snapshot, labels=labels_of(names))
    official_snapshot = dataclasses.replace(snapshot, labels=labels_of(data.labels))
    (found,) = score_checkpoints((str(file),), sorted_snapshot, "eval", 16)
    (expected,) = score_checkpoints((str(file),), official_snapshot, "eval", 16)
    columns = [data.labels.index(name) for name in names]
    assert columns != sorted(columns)
    np.testing.assert_allclose(found.evaluation.scores, expected.evaluation.scores[:, columns], atol=1e-6)
    other = dataclasses.replace(snapshot, labels=labels_of(("something else", *data.labels[1:])))
    with pytest.raises(MismatchError, match="class 0 is '"):
        list(score_checkpoints((str(file),), other, "eval", 16))


@by_title
def test_rows_of_an_official_head_are_assigned_by_class_name(
    tmp_path: Path, data: PublishedData, caplog: pytest.LogCaptureFixture
) -> None:
    file, official = write_official(tmp_path, data.num_classes, data.num_frames)
    names = (*sorted(data.labels)[10:], *sorted(data.labels)[:10])
    with caplog.at_level(logging.INFO):
        model = load_pretrained(file, official.config, names)
    for row, name in enumerate(names):
        official_row = data.labels.index(name)
        assert torch.equal(model.head.linear.weight[row], official.head.linear.weight[official_row])
        assert model.head.linear.bias[row] == official.head.linear.bias[official_row]
    assert f"{data.num_classes} of the head's {data.num_classes} classes selected by name" in caplog.text


def test_given_labels_must_have_the_official_order_or_other_names(tmp_path: Path) -> None:
    file, _ = write_official(tmp_path, 35, 128)
    with pytest.raises(MismatchError, match="the same 35, but in another order"):
        Tagger.load(file, labels_of(tuple(sorted(SPEECH_COMMANDS.labels))), "cpu")
    own = labels_of(tuple(f"word {index}" for index in range(35)))
    tagger = Tagger.load(file, own, "cpu")
    assert (tagger.labels, tagger.metadata.mean) == (own.names, -4.2677393)


def test_unpublished_length_is_refused_with_the_steps_to_load_it(tmp_path: Path) -> None:
    file, model = write_official(tmp_path, 35, 300)
    with pytest.raises(ConfigError, match=r"found 348 patches.*export_safetensors"):
        Tagger.load(file)
    export_safetensors(load_pretrained(file, model.config), tmp_path / "ast.safetensors")
    assert Tagger.load(tmp_path / "ast.safetensors", own_labels(35)).model.config == model.config


def own_labels(num_classes: int) -> Labels:
    return labels_of(tuple(map(str, range(num_classes))))
