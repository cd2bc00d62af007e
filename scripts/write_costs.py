"""Update the presets' computed costs: in their docstrings and in docs/cluster.md.

    python scripts/write_costs.py

For after a change of `ast_model.costs.MFU`, of a preset, or of the number of its clips.
"""

import re
from pathlib import Path

from ast_model import recipes
from ast_model.costs import H200, L40S_CLUSTER, L40S_NODE, MFU, cost_sentence, estimate_cost
from ast_model.recipes import NUM_CLIPS

ROOT = Path(__file__).parents[1]
MACHINES = {"1 × H200": H200, "4 × L40S": L40S_NODE, "32 × L40S": L40S_CLUSTER}
SENTENCE = r"[\d,.]+( million)? samples of .*, by computation .* of (?P<count>an|\d+) (?P<gpu>\w+) at \d+ % of the peak"
ROW = r"^\| `(\w+)` \| (\d+ × \w+) \|.*\|$"


def write_docstrings(source: str) -> str:
    """Return the source of `ast_model.recipes` with the costs as they are computed."""
    for name, num_clips in NUM_CLIPS.items():
        found = re.compile(SENTENCE).search(source, source.index(f"def {name}() "))
        assert found, f"expected a cost in the docstring of {name}"
        machine = MACHINES[f"{found['count'].replace('an', '1')} × {found['gpu']}"]
        sentence = cost_sentence(getattr(recipes, name)(), num_clips, machine)
        source = source[: found.start()] + sentence + source[found.end() :]
    return source


def write_table(page: str) -> str:
    """Return docs/cluster.md with the costs as they are computed."""

    def row(found: re.Match[str]) -> str:
        name, machine = found.groups()
        cost = estimate_cost(getattr(recipes, name)(), NUM_CLIPS[name], MACHINES[machine])
        step = f"{1000 * cost.compute_s:.0f} + {1000 * cost.exchange_s:.0f} ms"
        hours = f"{cost.hours:.1f} | {cost.accelerator_hours:.1f}"
        return f"| `{name}` | {machine} | {step} | {cost.num_steps:,} | {hours} |"

    page = re.sub(ROW, row, page, flags=re.MULTILINE)
    for name, mfu in MFU.items():
        page = re.sub(rf"\d+ % of an {name}'s", f"{100 * mfu:.0f} % of an {name}'s", page)
    return page


def main() -> None:
    for file, write in (("ast_model/recipes.py", write_docstrings), ("docs/cluster.md", write_table)):
        path = ROOT / file
        path.write_text(write(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
