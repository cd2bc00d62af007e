"""Convert an AST's config and normalisation from and to transformers' JSON files."""

from collections.abc import Mapping, Sequence
from typing import Any

from ast_model.config import ASTConfig
from pipeline.errors import ConfigError, WeightsError

MODEL_TYPE = "audio-spectrogram-transformer"

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "patch_size": 16,
    "frequency_stride": 10,
    "time_stride": 10,
    "max_length": 1024,
    "num_mel_bins": 128,
}
"""transformers' defaults for the fields that a `config.json` may omit."""


def read_config(description: Mapping[str, Any]) -> ASTConfig:
    """Convert a `config.json`. Raises WeightsError for settings that `AST` lacks."""
    theirs = {**_DEFAULTS, **description}
    if theirs["hidden_act"] != "gelu" or theirs["intermediate_size"] % theirs["hidden_size"]:
        raise WeightsError(
            "expected in config.json hidden_act gelu and an intermediate_size that is a multiple of hidden_size, found "
            f"{theirs['hidden_act']}, {theirs['intermediate_size']} and {theirs['hidden_size']}"
        )
    return ASTConfig(
        num_classes=len(theirs.get("id2label", "ab")),  # transformers' default is two classes
        num_frames=theirs["max_length"],
        num_mel_bins=theirs["num_mel_bins"],
        patch_freq=theirs["patch_size"],
        patch_time=theirs["patch_size"],
        freq_stride=theirs["frequency_stride"],
        time_stride=theirs["time_stride"],
        width=theirs["hidden_size"],
        depth=theirs["num_hidden_layers"],
        num_heads=theirs["num_attention_heads"],
        mlp_ratio=theirs["intermediate_size"] // theirs["hidden_size"],
        norm_eps=theirs["layer_norm_eps"],
        head_norm_eps=theirs["layer_norm_eps"],
    )


def fits_hugging_face(config: ASTConfig) -> bool:
    """Return True if transformers' AST supports this shape."""
    structure = (
        "num_extra_tokens",
        "post_norm",
        "fixed_positions",
        "patch_norm",
        "input_norm",
        "final_norm",
        "pooling",
    )
    default = ASTConfig()
    has_structure = all(getattr(config, name) == getattr(default, name) for name in structure)
    return config.patch_freq == config.patch_time and has_structure


def describe_config(config: ASTConfig, labels: Sequence[str], loss: str = "bce") -> dict[str, Any]:
    """Return the content of `config.json`. Its single epsilon is `norm_eps`. Raises ConfigError for other shapes."""
    if not fits_hugging_face(config):
        raise ConfigError(
            "expected square patches, two extra tokens that the head reads, learned positions and LayerNorms before the"
            " branches and after the last block only, as in Hugging Face's AST; found patches of"
            f" {config.patch_freq} bins × {config.patch_time} frames, {config.num_extra_tokens} extra tokens,"
            f" {'fixed' if config.fixed_positions else 'learned'} positions and a head for {config.pooling} tokens."
            " Export this model to safetensors or ONNX"
        )
    return {
        "architectures": ["ASTForAudioClassification"],
        "model_type": MODEL_TYPE,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_ratio * config.width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": config.norm_eps,
        "patch_size": config.patch_freq,
        "qkv_bias": True,
        "frequency_stride": config.freq_stride,
        "time_stride": config.time_stride,
        "max_length": config.num_frames,
        "num_mel_bins": config.num_mel_bins,
        "problem_type": "single_label_classification" if loss == "ce" else "multi_label_classification",
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def describe_features(config: ASTConfig, mean: float, std: float) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`. transformers also divides by twice the standard deviation."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16_000,
        "num_mel_bins": config.num_mel_bins,
        "max_length": config.num_frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": True,
        "mean": mean,
        "std": std,
        "return_attention_mask": False,
    }
