import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.decode import encode_flac
from tests.mirror import Handler, Mirror

TONE_S = 12


@pytest.fixture(scope="session")
def tone() -> bytes:
    """A FLAC file with a rising pitch, 12 s at 16 kHz."""
    seconds = np.arange(TONE_S * 16_000) / 16_000
    return encode_flac(0.3 * np.sin(2 * np.pi * (300 + 40 * seconds) * seconds))


@pytest.fixture(scope="session")
def mirror(tone: bytes) -> Iterator[Mirror]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.mirror = Mirror(f"http://127.0.0.1:{server.server_address[1]}", tone)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield Handler.mirror
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def tones(tone: bytes, tmp_path: Path) -> Path:
    """A folder of media in the naming schemes in use."""
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    names = ["-a_b_c_d_ef.flac", "deep/Y1234567890a.flac", "id_1234567890b.flac", "1234567890c_30.flac"]
    for name in [*names, "1234567890d_30000.flac", "1234567890e_0.500.flac", "notes.txt", "1234567890f.txt"]:
        (folder / name).write_bytes(tone)
    return folder
