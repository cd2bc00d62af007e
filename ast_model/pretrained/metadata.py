"""Metadata that a model's weights need before they can tag audio: classes, normalisation, activation."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ast_model.config import AUDIOSET_MEAN, AUDIOSET_STD, ASTConfig, Loss
from ast_model.pretrained.hugging_face import MODEL_TYPE
from ast_model.pretrained.published import find_published
from ast_model.pretrained.weight_files import METADATA_KEY, WeightFile
from pipeline.errors import InputError, MismatchError, WeightsError
from pipeline.labels import Labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelMetadata:
    """Classes, normalisation and activation of a model."""

    labels: Sequence[str]
    """Names of the classes, in the order of the logits."""
    mean: float
    """Mean that fbanks are normalised with."""
    std: float
    """Standard deviation that fbanks are normalised with, of which twice is divided by."""
    loss: Loss = "bce"
    """Loss that it was trained with: scores are a sigmoid per class, or with `ce` a softmax over classes."""


def read_metadata(file: WeightFile, config: ASTConfig, labels: Labels | None = None) -> ModelMetadata:
    """Return what a checkpoint says of itself, or what is known of the official `.pth` files, which say nothing.

    config: shape of the checkpoint's model.
    labels: needed where the classes are unknown; elsewhere they must be the checkpoint's own, in the same order.
    Raises InputError if the classes are unknown, MismatchError if `labels` are others, or not as many as the model has.
    """
    metadata = read_stored_metadata(file) or _published_metadata(config, labels)
    if not metadata.labels and labels is None:
        raise InputError(
            "expected the names of the classes, found none in these weights, and no published list is of"
            f" {config.num_classes} classes and {config.num_frames} frames: give their class_labels_indices.csv with"
            " --labels"
        )
    if metadata.labels and labels is not None:
        check_labels(labels.names, metadata.labels, "the checkpoint", "the given labels")
    names = tuple(metadata.labels) or (labels.names if labels else ())
    if len(names) != config.num_classes:
        raise MismatchError(
            f"expected {config.num_classes} labels, one for each class of the model, found {len(names)}"
        )
    return dataclasses.replace(metadata, labels=names)


def _published_metadata(config: ASTConfig, labels: Labels | None) -> ModelMetadata:
    data = find_published(config, labels.names if labels else ())
    if data is None:
        log.warning(
            "these weights don't state their mean and std; AudioSet's %s are used", (AUDIOSET_MEAN, AUDIOSET_STD)
        )
        return ModelMetadata((), AUDIOSET_MEAN, AUDIOSET_STD)
    log.info(
        "these weights have no metadata; with %d classes and %d frames they are taken to be the official ones of"
        " %s: %smean %s, std %s, loss %s",
        *(config.num_classes, config.num_frames, data.title),
        "its order of classes, " if data.labels else "",
        *(data.mean, data.std, data.loss),
    )
    return ModelMetadata(data.labels, data.mean, data.std, data.loss)


def find_labels(file: WeightFile, config: ASTConfig | None) -> tuple[str, ...]:
    """Return the names of a checkpoint's classes, also of an official one; empty if they are unknown.

    config: shape of the checkpoint's model, if that is known.
    """
    if metadata := read_stored_metadata(file):
        return tuple(metadata.labels)
    data = find_published(config) if config else None
    return data.labels if data else ()


def check_labels(found: Sequence[str], expected: Sequence[str], ours: str, theirs: str) -> None:
    """Raise MismatchError unless both are the same in the same order; `ours` and `theirs` name their owners."""
    if tuple(found) == tuple(expected):
        return
    if len(found) != len(expected):
        what = f"{len(expected)} in {ours}, {len(found)} in {theirs}"
    elif sorted(found) == sorted(expected):
        what = f"the same {len(found)}, but in another order"
    else:
        index, a, b = next((i, a, b) for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
        what = f"class {index} is {a!r} in {ours} and {b!r} in {theirs}"
    raise MismatchError(f"expected the classes of {ours} and of {theirs} to be the same, found {what}")


def read_stored_metadata(file: WeightFile) -> ModelMetadata | None:
    """Return what the files say, None if they say nothing. Raises WeightsError if that makes no sense."""
    description = file.description
    try:
        if METADATA_KEY in description:
            return ModelMetadata(**description[METADATA_KEY])
        if "labels" in description and "mean" in description:
            loss = description.get("train", {}).get("loss", "bce")
            return ModelMetadata(tuple(description["labels"]["names"]), description["mean"], description["std"], loss)
        if description.get("model_type") == MODEL_TYPE:
            return _hugging_face_metadata(description, file.features)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"expected labels, mean and std beside the weights, found a wrong one: {error!r}") from error
    return None


def _hugging_face_metadata(config: Mapping[str, Any], features: Mapping[str, Any]) -> ModelMetadata:
    """Return their metadata; statistics that no preprocessor_config.json gives are AudioSet's, as in transformers."""
    names = {int(index): name for index, name in config.get("id2label", {}).items()}
    labels = tuple(names[index] for index in range(len(names)))
    loss: Loss = "ce" if config.get("problem_type") == "single_label_classification" else "bce"
    return ModelMetadata(labels, features.get("mean", AUDIOSET_MEAN), features.get("std", AUDIOSET_STD), loss)
