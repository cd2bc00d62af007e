"""Metadata that weights need for tagging: classes, normalisation, loss."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ast_model.config import AUDIOSET_MEAN, AUDIOSET_STD, ASTConfig, Loss
from ast_model.pretrained.front_end import read_statistics
from ast_model.pretrained.hugging_face import MODEL_TYPE
from ast_model.pretrained.published import AUDIOSET, find_published
from ast_model.pretrained.weight_files import METADATA_KEY, WeightFile
from pipeline.errors import InputError, MismatchError, WeightsError
from pipeline.labels import Labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelMetadata:
    """Classes, normalisation and loss of a model."""

    labels: Sequence[str]
    """Names of the classes, in the order of the logits."""
    mean: float
    """Mean of the training fbanks; the input is (fbank - mean) / (2 · std)."""
    std: float
    """Standard deviation of the training fbanks."""
    loss: Loss = "bce"
    """Loss of the training. Scores are a sigmoid per class (`bce`) or a softmax over classes (`ce`)."""
    title: str = dataclasses.field(default="", compare=False)
    """Name of the training run for people, with size, start, method and data; empty if unknown."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"expected a finite mean and a positive std, found {self.mean} and {self.std}")


def read_metadata(file: WeightFile, config: ASTConfig, labels: Labels | None = None) -> ModelMetadata:
    """Return the metadata stored with a checkpoint or, for an official `.pth` without metadata, the published values.

    config: shape of the checkpoint's model.
    labels: required if the checkpoint's classes are unknown; otherwise they must equal them, in order.
    Raises InputError if the classes are unknown, MismatchError if `labels` differ from the checkpoint or the model,
    WeightsError if the JSON files next to the weights name another front end.
    """
    metadata = _with_front_end(file, config, read_stored_metadata(file) or _published_metadata(config, labels))
    if not metadata.labels and labels is None:
        raise InputError(
            "expected the names of the classes, found none in these weights and no published list for"
            f" {config.num_classes} classes and {config.num_frames} frames: give their class_labels_indices.csv with"
            " --labels"
        )
    if metadata.labels and labels is not None:
        check_labels(labels.names, metadata.labels, "the checkpoint", "the given labels")
    names = tuple(metadata.labels) or (labels.names if labels else ())
    if len(names) != config.num_classes:
        raise MismatchError(f"expected {config.num_classes} labels, one per class of the model, found {len(names)}")
    return dataclasses.replace(metadata, labels=names)


def _with_front_end(file: WeightFile, config: ASTConfig, metadata: ModelMetadata) -> ModelMetadata:
    """Return `metadata` with the mean and std of the front end next to the weights."""
    if statistics := read_statistics(file, config):
        try:
            return dataclasses.replace(metadata, mean=statistics[0], std=statistics[1])
        except (TypeError, ValueError) as error:
            raise WeightsError(f"expected a valid mean and std next to the weights: {error}") from error
    if file.description.get("model_type") == MODEL_TYPE:
        _check_default_statistics(config)
    return metadata


def _check_default_statistics(config: ASTConfig) -> None:
    """Raise WeightsError unless the shape identifies a model for AudioSet, which has transformers' default values."""
    if find_published(config) is not AUDIOSET:
        raise WeightsError(
            "expected preprocessor_config.json next to config.json, with the mean and std of the training data, found"
            " none. transformers would use AudioSet's, which give wrong scores for a model of other data; add the file"
        )
    log.warning("no preprocessor_config.json; using AudioSet's mean %s and std %s", AUDIOSET_MEAN, AUDIOSET_STD)


def _published_metadata(config: ASTConfig, labels: Labels | None) -> ModelMetadata:
    data = find_published(config, labels.names if labels else ())
    if data is None:
        log.warning("these weights state no mean and std; using AudioSet's %s and %s", AUDIOSET_MEAN, AUDIOSET_STD)
        return ModelMetadata((), AUDIOSET_MEAN, AUDIOSET_STD)
    log.info(
        "these weights have no metadata; %d classes and %d frames identify the official weights for"
        " %s: %smean %s, std %s, loss %s",
        *(config.num_classes, config.num_frames, data.title),
        "its order of classes, " if data.labels else "",
        *(data.mean, data.std, data.loss),
    )
    return ModelMetadata(data.labels, data.mean, data.std, data.loss)


def find_labels(file: WeightFile, config: ASTConfig | None) -> tuple[str, ...]:
    """Return the class names of a checkpoint, stored or published; empty if unknown.

    config: shape of the checkpoint's model, if known; it identifies official weights.
    """
    if metadata := read_stored_metadata(file):
        return tuple(metadata.labels)
    data = find_published(config) if config else None
    return data.labels if data else ()


def check_labels(found: Sequence[str], expected: Sequence[str], ours: str, theirs: str) -> None:
    """Raise MismatchError unless both lists are equal. `ours` and `theirs` name their origins in messages."""
    if tuple(found) == tuple(expected):
        return
    if len(found) != len(expected):
        difference = f"{len(expected)} in {ours}, {len(found)} in {theirs}"
    elif sorted(found) == sorted(expected):
        difference = f"the same {len(found)}, but in another order"
    else:
        index, a, b = next((i, a, b) for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
        difference = f"class {index} is {a!r} in {ours} and {b!r} in {theirs}"
    raise MismatchError(f"expected the same classes in {ours} and {theirs}, found {difference}")


def read_stored_metadata(file: WeightFile) -> ModelMetadata | None:
    """Return the metadata stored with the weights, or None. Raises WeightsError if they are malformed."""
    description = file.description
    try:
        if METADATA_KEY in description:
            return ModelMetadata(**description[METADATA_KEY])
        if "labels" in description and "mean" in description:
            loss = description.get("train", {}).get("loss", "bce")
            title = description.get("title") or description.get("run", "")
            names = tuple(description["labels"]["names"])
            return ModelMetadata(names, description["mean"], description["std"], loss, title)
        if description.get("model_type") == MODEL_TYPE:
            return _hugging_face_metadata(description)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"expected valid labels, mean and std next to the weights, found: {error!r}") from error
    return None


def _hugging_face_metadata(config: Mapping[str, Any]) -> ModelMetadata:
    """Return the classes and the loss of a Hugging Face model, with AudioSet's statistics."""
    names = {int(index): name for index, name in config.get("id2label", {}).items()}
    labels = tuple(names[index] for index in range(len(names)))
    loss: Loss = "ce" if config.get("problem_type") == "single_label_classification" else "bce"
    return ModelMetadata(labels, AUDIOSET_MEAN, AUDIOSET_STD, loss)
