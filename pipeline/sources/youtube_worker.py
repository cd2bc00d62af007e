"""Run yt-dlp in a process that responds to each JSON line on stdin with a JSON line on stdout.

yt-dlp waits for servers, FFmpeg and a JavaScript runtime, sometimes without a time limit. Threads can't be killed, so
the parent kills this process at the deadline. The process also ends if its parent ends.
"""

import json
import os
import queue
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import yt_dlp
from yt_dlp.networking.impersonate import ImpersonateTarget
from yt_dlp.utils import DownloadCancelled
from yt_dlp.version import __version__

from pipeline.errors import AudioTaggingError
from pipeline.records import Failure, Reason
from pipeline.sources.reasons import failure_of

# `best` is for videos without an audio-only format. "drc" marks audio with compressed dynamic range. Don't use
# `download_ranges`: FFmpeg cuts at key frames, which may be seconds off, and may wait forever. The decoder cuts the
# audio instead.
FORMAT = "bestaudio[format_id!*=-drc]/bestaudio/best"
# The most important field comes first. `lang` is 10 for the original language, 5 for the default, -1 for a dubbed track
# and -10 for an audio description. By default, yt-dlp sorts by `lang` last. `proto` prefers a single file to fragments.
# Small files are good enough, because only frequencies below 8 kHz are used.
FORMAT_SORT = ["lang", "proto", "+size", "+br"]
SOCKET_TIMEOUT_S = 20


class TooLargeError(DownloadCancelled):
    pass


class WarningRecorder:
    """A logger that collects yt-dlp's warnings. Errors need no logger, because yt-dlp raises them as exceptions."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def debug(self, message: str) -> None:
        pass

    info = error = debug


def yt_dlp_options(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return options that make yt-dlp download a single audio-only file, without conversion or extra files."""
    max_bytes = request["max_bytes"]

    def check_size(progress: dict[str, Any]) -> None:
        if max(progress.get("downloaded_bytes") or 0, progress.get("total_bytes") or 0) > max_bytes:
            raise TooLargeError(f"more than {max_bytes} bytes")

    options = {
        "format": FORMAT,
        "format_sort": FORMAT_SORT,
        "outtmpl": str(folder / "media.%(ext)s"),
        "overwrites": True,
        "noplaylist": True,
        "hls_prefer_native": True,
        "fixup": "never",
        # The parent process retries within the rate limit of the address.
        "retries": 0,
        "fragment_retries": 1,
        # If a fragment were missing, all later audio would be shifted.
        "skip_unavailable_fragments": False,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "progress_hooks": [check_size],
        "noprogress": True,
        "quiet": True,
        "no_color": True,
        "allowed_extractors": request["extractors"],
    }
    options |= request["options"]
    if "impersonate" in options:
        options["impersonate"] = ImpersonateTarget.from_str(options["impersonate"])
    return options


def fetch(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fetch one video, and try once more after a 403.

    A 403 for media often comes from a single server or an expired address. If a fresh address gives a 403 as well,
    YouTube probably blocks this client.
    """
    answer = attempt(request, folder)
    return attempt(request, folder) if answer.get("reason") == Reason.BLOCKED else answer


def attempt(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return `file` and `source`. After a failure, return `reason` and `detail`. To end the run, return `error` and
    `detail`."""
    for file in folder.iterdir():
        file.unlink()
    address, log = request["address"], WarningRecorder()
    try:
        with yt_dlp.YoutubeDL(yt_dlp_options(request, folder) | {"logger": log}) as youtube:  # pyright: ignore[reportArgumentType]
            info: Any = youtube.extract_info(address)
        files = [entry["filepath"] for entry in info.get("requested_downloads") or ()]
        if not files or not Path(files[0]).exists():
            return as_answer(Failure(Reason.UNKNOWN, f"{address}: yt-dlp left no file and no error"))
    except TooLargeError as error:
        return as_answer(Failure(Reason.TOO_LARGE, f"{address}: {error}"))
    except Exception as error:  # if yt-dlp has a bug, only this clip fails
        try:
            return as_answer(failure_of(error, log.warnings))
        except AudioTaggingError as run_error:
            return {"error": type(run_error).__name__, "detail": str(run_error)}
    return {"file": files[0], "source": f"{address} (format {info.get('format_id')}, yt-dlp {__version__})"}


def as_answer(failure: Failure) -> dict[str, Any]:
    return {"reason": failure.reason, "detail": failure.detail}


def read_requests(requests: "queue.Queue[str]", home: Path) -> None:
    """Queue requests until the parent closes stdin, then delete the cookies and kill the process group."""
    for line in sys.stdin:
        requests.put(line)
    shutil.rmtree(home, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def main(folder: Path) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keep yt-dlp's output separate from the responses
    requests: queue.Queue[str] = queue.Queue()
    # Use a thread, because the main thread may be waiting for a server when the parent ends.
    threading.Thread(target=read_requests, args=(requests, folder.parent), daemon=True).start()
    while True:
        print(json.dumps(fetch(json.loads(requests.get()), folder)), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
