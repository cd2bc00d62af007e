"""Place tasks on nodes by their label `audioset-ast/pool`, which is `head`, `fetch` or `train`.

The cluster files set the label. The selectors only exclude pools, so a node without the label, such as a single
machine, runs all tasks.
"""

POOL = "audioset-ast/pool"
ON_FETCH_NODES = {POOL: "!in(head,train)"}
"""Selector for conversion and other work on CPUs."""
ON_TRAIN_NODES = {POOL: "!in(head,fetch)"}
"""Selector for training and other work on GPUs."""
