"""Large archives from the web: resumed where they broke off, checked, unpacked."""

import hashlib
import logging
import tarfile
import time
import zipfile
from pathlib import Path

import requests

from pipeline.errors import CorruptError, InputError, StoreError
from pipeline.progress import Progress, show_progress

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**16
TIMEOUT_S = 30.0
MAX_BARREN_ATTEMPTS = 5
"""Attempts in a row that bring nothing, before giving up."""
PAUSE_S = 1.0
UNPACKED = ".unpacked"


def fetch_archive(address: str, file: Path, digest: str = "") -> Path:
    """Download to `file`, going on where an earlier call broke off; what is there already is kept.

    digest: sha256 (64 digits) or md5 (32); without it only the length is checked, and what unpacking notices.
    Raises StoreError if nothing more comes, CorruptError if the digest differs.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.part")
        _download(address, part)
        _check_digest(part, digest, address)
        part.replace(file)
    return file


def _download(address: str, part: Path) -> None:
    barren = 0
    with show_progress(f"fetch {address.rsplit('/', 1)[-1]}", 0, "bytes", _size(part)) as progress:
        while True:
            before, problem = _size(part), ""
            try:
                if _fetch_rest(address, part, progress):
                    return
            except requests.RequestException as error:
                problem = f": {error}"
            barren = barren + 1 if _size(part) <= before else 0
            if barren >= MAX_BARREN_ATTEMPTS:
                raise StoreError(
                    f"{address} sends nothing more after {_size(part)} bytes{problem}; the same command goes on from"
                    " there, or fetch it otherwise and give the folder"
                )
            time.sleep(PAUSE_S * barren)


def _fetch_rest(address: str, part: Path, progress: Progress) -> bool:
    """Make one request for what is missing; return whether that is all. Servers without ranges start anew."""
    start = _size(part)
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with requests.get(address, headers=headers if start else None, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == 416:  # nothing lies behind what is here
            return True
        if not response.ok:
            problem = f"{address}: HTTP {response.status_code} {response.reason}"
            if 400 <= response.status_code < 500 and response.status_code != 429:
                raise InputError(f"{problem}; look at the address")
            raise requests.HTTPError(problem)
        if response.status_code != 206:
            start = 0
        declared = response.headers.get("Content-Length")
        total = start + int(declared) if declared else 0
        with part.open("ab" if start else "wb") as out:
            for chunk in response.iter_content(CHUNK_BYTES):
                out.write(chunk)
                progress.reach(out.tell(), total)
        return not declared or _size(part) >= total


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _check_digest(file: Path, digest: str, address: str) -> None:
    if not digest:
        log.warning("%s has no known digest; only its length was checked", address)
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "md5" if len(digest) == 32 else "sha256").hexdigest()
    if found != digest.lower():
        file.unlink()
        raise CorruptError(f"{address}: expected the digest {digest}, found {found}; the file was removed, fetch anew")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip or tar into `folder`, once; one that broke off is unpacked anew. Raises CorruptError if it can't."""
    if (folder / UNPACKED).exists():
        return folder
    log.info("unpacking %s", archive)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise CorruptError(f"can't unpack {archive}: {error}; remove it and run again") from error
    (folder / UNPACKED).touch()
    return folder
