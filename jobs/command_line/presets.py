"""Make presets from recipes. All commands that train on AudioSet share their names and numbers of workers."""

from collections.abc import Callable
from typing import TypeVar

from ast_model import recipes
from ast_model.recipes import Recipe
from jobs.command_line.settings import RayConfig

Config = TypeVar("Config")

WORKERS = {
    "demo": RayConfig(),
    "audioset_balanced": RayConfig("1", use_gpu=True),
    "audioset_full": RayConfig("4", use_gpu=True),
    "audioset_full_scaled": RayConfig("4:32", use_gpu=True),
    "audioset_eat": RayConfig("4", use_gpu=True),
    "audioset_distilled": RayConfig("4", use_gpu=True),
    "audioset_balanced_modern": RayConfig("1", use_gpu=True),
    "audioset_modern": RayConfig("4", use_gpu=True),
}


def make_presets(make: Callable[[str, Recipe, RayConfig], Config]) -> dict[str, Callable[[], Config]]:
    """Return one preset per AudioSet recipe, with the recipe's docstring.

    make: function that builds a command's config from a recipe's name, the recipe, and the workers.
    """

    def preset(name: str) -> Callable[[], Config]:
        return make_preset(getattr(recipes, name), lambda recipe: make(name, recipe, WORKERS[name]))

    return {name: preset(name) for name in WORKERS}


def make_preset(recipe: Callable[[], Recipe], make: Callable[[Recipe], Config]) -> Callable[[], Config]:
    """Return the preset of a recipe, with its docstring. make: function that builds the command's config."""

    def preset() -> Config:
        return make(recipe())

    preset.__doc__ = recipe.__doc__
    return preset
