"""Place tasks on nodes by their label `audioset-ast/pool`, which is `head`, `fetch` or `train`.

The cluster files set the labels. Selectors only exclude pools, so nodes without the label, such as a single machine,
run everything.
"""

POOL = "audioset-ast/pool"
ON_FETCH_NODES = {POOL: "!in(head,train)"}
"""Selector for conversion and other work on CPUs."""
ON_TRAIN_NODES = {POOL: "!in(head,fetch)"}
"""Selector for training and other work on GPUs."""
