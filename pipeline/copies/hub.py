"""Pin repositories on the Hugging Face hub to a commit, and tell users how to log in."""

from typing import Any

import fsspec

HUB = "hf://"


def pin_commit(address: str) -> tuple[str, str]:
    """Return the root of a repository's address, and the same root at its current commit.

    All files of a run therefore come from the same commit, even if the repository changes in the meantime. Storage
    buckets have no commits and keep their root. Raises the errors of the hub's client.
    """
    from huggingface_hub import HfApi  # importing this takes 0.3 s

    fs: Any = fsspec.filesystem("hf")
    resolved = fs.resolve_path(address)
    root = HUB + resolved.root
    if not hasattr(resolved, "repo_id"):
        return root, root
    api = HfApi(fs.endpoint, fs.token)  # ask the API, because the file system caches its responses
    found = api.repo_info(resolved.repo_id, repo_type=resolved.repo_type, revision=resolved.revision)
    return root, f"{root.partition('@')[0]}@{found.sha}"


def login_advice(address: str) -> str:
    """Tell the user what to do if a repository refuses access."""
    from huggingface_hub import get_token

    parts = address.removeprefix(HUB).split("/")
    repository = "/".join(parts[: 3 if parts[0] in ("datasets", "spaces") else 2]).partition("@")[0]
    advice = f"check the name, and request access at https://huggingface.co/{repository} if it is gated; then"
    if get_token():
        return f"{advice} check that the token in use may read it (`hf auth whoami`)"
    return f"{advice} log in with `hf auth login`, or set HF_TOKEN on all nodes"
