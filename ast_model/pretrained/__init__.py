"""Published weights, and our own, from wherever they lie."""

from ast_model.pretrained.load import load_pretrained

__all__ = ["load_pretrained"]
