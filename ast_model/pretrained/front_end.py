"""Mean and standard deviation that weights expect, and a check of the front end in their JSON files."""

from collections.abc import Mapping
from typing import Any

from ast_model.config import AUDIOSET_MEAN, AUDIOSET_STD, ASTConfig
from ast_model.pretrained.weight_files import WeightFile
from pipeline.errors import WeightsError
from pipeline.fbank_settings import SAMPLE_RATE_HZ

Statistics = tuple[float, float]
"""Mean and standard deviation, for an input of (fbank - mean) / (2 · std)."""

_FEATURES = "preprocessor_config.json"
_NOT_NORMALISED = (0.0, 0.5)
"""Statistics that leave the fbank unchanged."""
_OF_AUDIOMOSAIC = "audio_preprocessing"


def read_statistics(file: WeightFile, config: ASTConfig) -> Statistics | None:
    """Return the statistics in `preprocessor_config.json` or AudioMosaic's `config.json`, or None without either.

    AudioMosaic was trained and evaluated with 2 · std, like AST, although the example in its hub folders divides by
    std. Raises WeightsError for another front end and for values that contradict the model.
    """
    if file.features:
        return _of_transformers(file.features, config)
    if _OF_AUDIOMOSAIC in file.description:
        return _of_audiomosaic(file.description[_OF_AUDIOMOSAIC], config)
    return None


def _of_transformers(features: Mapping[str, Any], config: ASTConfig) -> Statistics:
    expected = {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE_HZ,
        "num_mel_bins": config.num_mel_bins,
        "max_length": config.num_frames,
        "padding_value": 0,
    }
    _check(features, expected, _FEATURES)
    if features.get("do_normalize", True) is False:
        return _NOT_NORMALISED
    return features.get("mean", AUDIOSET_MEAN), features.get("std", AUDIOSET_STD)


def _of_audiomosaic(settings: Mapping[str, Any], config: ASTConfig) -> Statistics:
    expected = {
        "sample_rate": SAMPLE_RATE_HZ,
        "frame_shift": 10,
        "num_mel_bins": config.num_mel_bins,
        "target_length": config.num_frames,
    }
    _check(settings, expected, f"{_OF_AUDIOMOSAIC} of config.json")
    return settings.get("norm_mean", AUDIOSET_MEAN), settings.get("norm_std", AUDIOSET_STD)


def _check(found: Mapping[str, Any], expected: Mapping[str, Any], place: str) -> None:
    for name, value in expected.items():
        if found.get(name, value) != value:
            raise WeightsError(
                f"expected {name} {value} in {place}, as the model and this front end need, found {found[name]}"
            )
