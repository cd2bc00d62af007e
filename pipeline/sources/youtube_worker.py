"""yt-dlp in a process of its own: reads requests from stdin, one JSON line each, and answers with one JSON line.

The parent kills it at a deadline, which holds against whatever yt-dlp waits on. It ends with its parent, by itself.
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
from yt_dlp.utils import DownloadCancelled, DownloadError
from yt_dlp.version import __version__

from pipeline.records import Failure, Reason
from pipeline.sources.reasons import failure_of

FORMAT = "bestaudio[protocol^=http]/bestaudio/worst"
FORMAT_SORT = ["+size", "+br"]
"""The smallest comes first; yt-dlp puts the original language before that."""
SOCKET_TIMEOUT_S = 20


class TooLargeError(DownloadCancelled):
    pass


class Silent:
    """Takes yt-dlp's messages; the error itself comes as an exception."""

    def debug(self, message: str) -> None:
        pass

    info = warning = error = debug


def options_of(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Say how yt-dlp is to fetch: one audio-only file, natively, nothing converted, no file written but that."""
    limit = request["max_bytes"]

    def check_size(progress: dict[str, Any]) -> None:
        if max(progress.get("downloaded_bytes") or 0, progress.get("total_bytes") or 0) > limit:
            raise TooLargeError(f"more than {limit} bytes")

    options = {
        "format": FORMAT,
        "format_sort": FORMAT_SORT,
        "outtmpl": str(folder / "media.%(ext)s"),
        "overwrites": True,
        "noplaylist": True,
        "hls_prefer_native": True,
        "fixup": "never",
        "retries": 0,
        "fragment_retries": 1,
        "skip_unavailable_fragments": False,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "progress_hooks": [check_size],
        "noprogress": True,
        "quiet": True,
        "no_warnings": True,
        "no_color": True,
        "logger": Silent(),
        "allowed_extractors": request["extractors"],
    }
    return options | request["options"]


def fetch(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    for file in folder.iterdir():
        file.unlink()
    try:
        with yt_dlp.YoutubeDL(options_of(request, folder)) as youtube:  # pyright: ignore[reportArgumentType]
            info: Any = youtube.extract_info(request["address"])
        files = [entry["filepath"] for entry in info.get("requested_downloads") or ()]
    except TooLargeError as error:
        return {"reason": Reason.TOO_LARGE, "detail": f"{request['address']}: {error}"}
    except (DownloadError, DownloadCancelled, OSError) as error:
        return answer_of(failure_of(error))
    if not files or not Path(files[0]).exists():
        return {"reason": Reason.UNKNOWN, "detail": f"{request['address']}: yt-dlp left no file and no error"}
    return {"file": files[0], "source": f"{request['address']} (format {info.get('format_id')}, yt-dlp {__version__})"}


def answer_of(failure: Failure) -> dict[str, Any]:
    return {"reason": failure.reason, "detail": failure.detail}


def read_requests(requests: "queue.Queue[str]", home: Path) -> None:
    """Pass requests on; when the parent is gone, end at once, with whatever yt-dlp started, and leave no cookies."""
    for line in sys.stdin:
        requests.put(line)
    shutil.rmtree(home, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def main(folder: Path) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may write between the answers
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=read_requests, args=(requests, folder.parent), daemon=True).start()
    while True:
        print(json.dumps(fetch(json.loads(requests.get()), folder)), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
