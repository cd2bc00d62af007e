"""Placement of tasks by the label `audioset-ast/pool` of nodes: `head`, `fetch` or `train`.

The cluster files set the labels. Selectors only exclude pools, so nodes without the label, such as a single machine,
run everything.
"""

POOL = "audioset-ast/pool"
ON_FETCH_NODES = {POOL: "!in(head,train)"}
"""Selector of conversions and other work on CPUs."""
ON_TRAIN_NODES = {POOL: "!in(head,fetch)"}
"""Selector of trainings and other work on GPUs."""
