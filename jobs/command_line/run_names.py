"""Make names for new runs."""

import secrets
import time


def new_run_name(prefix: str) -> str:
    """Return a unique name that sorts by start time: `demo-20260131-235959-3f9a`."""
    return f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
