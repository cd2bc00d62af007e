"""Convert settings to command-line flags and to text by dotted name."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast


def flag_of(name: str) -> str:
    """Return the flag that sets a setting: `train.num_epochs` → `--train.num-epochs`."""
    return f"--{name.replace('_', '-')}"


def flatten(settings: Any, prefix: str = "") -> dict[str, str]:
    """Convert nested settings to text by dotted name: `train.augment.noise` → `True`.

    A dataclass and its JSON give the same text, so that recorded settings can be compared with current settings.
    """
    named: Mapping[str, Any] = (
        cast(Mapping[str, Any], settings)
        if isinstance(settings, Mapping)
        else {field.name: getattr(settings, field.name) for field in fields(settings)}
    )
    flat: dict[str, str] = {}
    for name, value in named.items():
        if isinstance(value, Mapping) or is_dataclass(value):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            values = cast(Sequence[Any], value) if isinstance(value, tuple | list) else [value]
            flat[prefix + name] = ",".join(map(str, values))
    return flat
