"""Settings as text: their flags, and their values by dotted name."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast


def flag_of(name: str) -> str:
    """Return the flag that sets a setting: `train.num_epochs` → `--train.num-epochs`."""
    return f"--{name.replace('_', '-')}"


def flatten(settings: Any, prefix: str = "") -> dict[str, str]:
    """Turn nested settings into text by dotted name: `train.augment.noise` → `True`.

    Takes a dataclass, or a mapping such as its JSON: both of the same settings give the same result, so that what was
    recorded can be compared with what is asked for now.
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
