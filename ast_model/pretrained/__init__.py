"""Load published weights and own checkpoints into a model."""

from ast_model.pretrained.load import load_pretrained

__all__ = ["load_pretrained"]
