"""Load published weights, or checkpoints of this project, into a model."""

from ast_model.pretrained.load import load_pretrained

__all__ = ["load_pretrained"]
