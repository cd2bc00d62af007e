"""Download, verify and unpack large archives. Interrupted downloads resume.

Uses neither pooch, which restarts interrupted downloads, nor huggingface_hub, whose resumption is not public.
"""

import hashlib
import logging
import shutil
import subprocess
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import requests

from pipeline.errors import CorruptError, InputError, StoreError, describe, quote
from pipeline.progress import Progress, show_progress

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**16
TIMEOUT_S = 30.0
MAX_FRUITLESS_ATTEMPTS = 5
"""A download fails after this many attempts in a row without any new bytes."""
PAUSE_S = 1.0
RANGE_NOT_SATISFIABLE, PARTIAL_CONTENT, TOO_MANY_REQUESTS = 416, 206, 429


def fetch_archive(address: str, file: Path, digest: str = "") -> Path:
    """Download to `file`, unless it exists already. Resumes an interrupted download.

    digest: sha256 (64 digits) or md5 (32 digits). Without it, only the length is checked. Raises InputError if the
    server refuses the address, StoreError if the server stops sending, CorruptError for another digest.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.part")
        with show_progress(f"fetch {address.rsplit('/', 1)[-1]}", 0, "bytes", _size(part)) as progress:
            _download(address, part, progress)
        _check_digest(part, digest, address)
        part.replace(file)
    return file


def _download(address: str, part: Path, progress: Progress) -> None:
    """Request the missing bytes until the file is complete or several attempts in a row add nothing."""
    num_fruitless = 0
    while True:
        num_before, problem = _size(part), ""
        try:
            if _request_rest(address, part, progress):
                return
        except (requests.RequestException, ValueError) as error:  # ValueError: a redirect to an invalid address
            problem = f" ({describe(error)})"
        num_fruitless = num_fruitless + 1 if _size(part) <= num_before else 0
        if num_fruitless >= MAX_FRUITLESS_ATTEMPTS:
            raise StoreError(
                f"{address} sends nothing more after {_size(part)} bytes{problem}; run the same command again to resume"
                " from there, or download it by other means and name the unpacked folder"
            )
        time.sleep(PAUSE_S * num_fruitless)


def _request_rest(address: str, part: Path, progress: Progress) -> bool:
    """Request the missing bytes once. Returns True if the file is complete. Without ranges, starts over."""
    start = _size(part)
    # Compressed bodies support no ranges.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if start and response.status_code == RANGE_NOT_SATISFIABLE:  # the part is already complete
            return True
        if not response.ok:
            problem = f"{address}: HTTP {response.status_code}"
            if 400 <= response.status_code < 500 and response.status_code != TOO_MANY_REQUESTS:
                raise InputError(f"{problem}; check the address")
            raise requests.HTTPError(problem)
        if response.status_code != PARTIAL_CONTENT:
            start = 0
        declared = response.headers.get("Content-Length", "")
        total = start + int(declared[:18]) if declared.isdecimal() else 0
        with part.open("ab" if start else "wb") as out:
            for chunk in response.iter_content(CHUNK_BYTES):
                out.write(chunk)
                progress.reach(out.tell(), total)
        return _size(part) >= total


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _check_digest(file: Path, digest: str, address: str) -> None:
    if not digest:
        log.warning("the digest of %s is unknown, so only its length was checked", address)
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "md5" if len(digest) == 32 else "sha256").hexdigest()
    if found != digest.lower():
        file.unlink()
        raise CorruptError(f"{address}: expected the digest {digest}, found {found}; the file was removed, run again")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip or tar into `folder` unless a previous call completed. Raises CorruptError for damaged archives."""
    unpacked = folder / f".{archive.name}.unpacked"
    if unpacked.exists():
        return folder
    log.info("unpacking %s", archive)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
    # zipfile raises RuntimeError for passwords and unknown compression methods.
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise CorruptError(f"can't unpack {archive}: {describe(error)}; remove it and run again") from error
    unpacked.touch()
    return folder


def join_split_zip(last_part: Path) -> Path:
    """Join a split zip (`NAME.z01`, `NAME.z02`, … and `NAME.zip`) into one file, unless that file exists already.
    Returns the file.

    Python's zipfile can't read split zips. Info-ZIP's `zip` joins them correctly if no member spans more than two
    parts; otherwise unpacking finds wrong CRCs. Raises InputError without `zip`, CorruptError if it fails.
    """
    joined = last_part.with_name(f"{last_part.stem}.joined.zip")
    if joined.exists():
        return joined
    program = shutil.which("zip")
    if program is None:
        raise InputError(
            f"{last_part} is part of a split zip, which requires Info-ZIP's `zip`: install it (`apt-get install zip`)"
            " and run again, or unpack the parts with another program and pass the folder with --data"
        )
    log.info("joining the parts of %s", last_part)
    unfinished = joined.with_name(f"{last_part.stem}.unfinished.zip")
    unfinished.unlink(missing_ok=True)
    command = [program, "-q", "-s", "0", str(last_part), "--out", str(unfinished)]
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if found.returncode:
        raise CorruptError(
            f"can't join the parts of {last_part}: {quote((found.stderr + found.stdout).strip())}; remove the parts and"
            " run again"
        )
    unfinished.replace(joined)
    return joined
