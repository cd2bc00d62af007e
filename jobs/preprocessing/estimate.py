"""Estimate the time and bytes of a preprocessing run. docs/scale.md has figures and prices for all of AudioSet."""

import os

CPU_S_PER_CLIP = 0.02
"""CPU time per clip for decoding, fbank and writing, measured by bench/convert.py."""
FETCHED_BYTES_PER_CLIP = 1.2e6
"""Download size per clip of YouTube: about 200 s of audio at 48 kbit/s."""
STORED_BYTES_PER_CLIP = 258e3
"""Size of a float16 fbank of 10 s and its JSON."""
AUDIO_BYTES_PER_CLIP = 214e3
"""Size of the FLAC that `keep_audio` adds."""
READ_BYTES_PER_S = 100e6
"""Speed of reading containers over a good connection or from a hard disk."""


def estimate_lines(
    num_segments: int, num_single: int, num_bytes: int, clips_per_hour: int, num_addresses: int, keep_audio: bool
) -> list[str]:
    """Return lines of text with estimates for the segments that are due.

    num_single: segments fetched one by one. num_bytes: bytes of the containers to read for the other segments.
    clips_per_hour: limit per address for single segments; 0 for none.
    """
    num_cores = os.cpu_count() or 1
    hours = max(num_segments * CPU_S_PER_CLIP / num_cores, num_bytes / READ_BYTES_PER_S) / 3600
    limit = f"containers at {READ_BYTES_PER_S / 1e6:.0f} MB/s" if num_bytes else "no hourly limit"
    if clips_per_hour:
        hours = max(hours, num_single / clips_per_hour / num_addresses)
        limit = f"{clips_per_hour} clips an hour from each of {num_addresses} addresses"
    stored = num_segments * (STORED_BYTES_PER_CLIP + AUDIO_BYTES_PER_CLIP * keep_audio)
    duration = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
    fetched = num_bytes + num_single * FETCHED_BYTES_PER_CLIP
    return [
        f"time     about {duration} on this machine's {num_cores} cores; {limit}",
        f"bytes    at most {_in_gb(fetched)} fetched, {_in_gb(stored)} stored",
    ]


def _in_gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
