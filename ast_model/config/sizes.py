"""Names of model sizes."""

from ast_model.config.model import ASTConfig

SIZES = {
    "nano": ASTConfig.nano,
    "tiny": ASTConfig.tiny,
    "small": ASTConfig.small,
    "base": ASTConfig.base,
    "eat": ASTConfig.eat,
    "audiomosaic": ASTConfig.audiomosaic,
    "audiomae": ASTConfig.audiomae,
}
"""Named sizes, smallest first."""


def size_name(model: ASTConfig) -> str:
    """Return the name of a model's size, such as `base`, or its width and depth, such as `64×2`."""
    names = [name for name, size in SIZES.items() if _structure(size()) == _structure(model)]
    return names[0] if names else f"{model.width}×{model.depth}"


def _structure(model: ASTConfig) -> tuple[int | bool | str, ...]:
    return model.width, model.depth, model.num_heads, model.post_norm, model.pooling
