import gzip
import io
import os
import tarfile
from pathlib import Path

import fsspec
import pytest

from pipeline.errors import InputError
from pipeline.sources.archives import find_files, list_tar
from tests.mirror import Mirror


def write_tar(path: str, tone: bytes) -> None:
    with fsspec.open(path, "wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:  # pyright: ignore
        for name in ("first.flac", "../../second.flac", "third.flac"):
            info = tarfile.TarInfo(name)
            info.size = len(tone)
            tar.addfile(info, io.BytesIO(tone))
        link = tarfile.TarInfo("link.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)


def test_truncated_tar_is_listed_up_to_its_end(tone: bytes, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.tar", tmp_path / "half.tar"
    write_tar(str(whole), tone)
    half.write_bytes(whole.read_bytes()[: 2 * (len(tone) + 1024)])
    assert [member.name for member in list_tar(str(whole))] == ["first.flac", "../../second.flac", "third.flac"]
    assert list_tar(str(half))[0].name == "first.flac"
    (tmp_path / "page.tar").write_bytes(b"<html>" * 1000)
    with pytest.raises(InputError, match=r"expected a tar at .*page.tar"):
        list_tar(str(tmp_path / "page.tar"))
    with pytest.raises(InputError, match="found none"):
        find_files(str(tmp_path / "no*.tar"))


def test_server_without_ranges_and_failing_server_are_named(
    mirror: Mirror, tone: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(f"{tmp_path}/whole.tar", tone)
    monkeypatch.setattr(mirror, "content", (tmp_path / "whole.tar").read_bytes())
    with pytest.raises(InputError, match=r"can't read the tar .*whole.tar: .* range"):
        list_tar(mirror.address + "/whole.tar")
    with pytest.raises(InputError, match=r"can't read the tar .*status503.tar: .*503"):
        list_tar(mirror.address + "/status503.tar")


@pytest.mark.parametrize("size", [-512, 2**70])
def test_tar_with_impossible_sizes_is_refused(size: int, tmp_path: Path) -> None:
    """A member of -512 bytes is followed by its own header, forever."""
    header = bytearray(tarfile.TarInfo("1234567890a.flac").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size % 256**12 | (size > 0) << 95).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(InputError, match=r"a\.tar.*(impossible size|cannot fit|invalid offset)"):
        list_tar(str(tmp_path / "a.tar"))


def test_concatenated_tars_are_reported(tone: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(f"{tmp_path}/a.tar", tone)
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes() * 2)
    assert len(list_tar(f"{tmp_path}/b.tar")) == 3
    assert "b.tar is damaged after 3 media: ReadError: more data after the end" in caplog.text


def test_damaged_header_between_members_is_reported(
    tone: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(f"{tmp_path}/a.tar", tone)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    place = content.index(b"../../second.flac")
    content[place : place + 512] = b"\xff" * 512
    (tmp_path / "a.tar").write_bytes(content)
    assert [member.name for member in list_tar(f"{tmp_path}/a.tar")] == ["first.flac"]
    assert "more data after the end" in caplog.text


def test_gzip_and_pipes_named_tar_are_rejected(tone: bytes, tmp_path: Path) -> None:
    write_tar(f"{tmp_path}/a.tar", tone)
    (tmp_path / "gzip.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(InputError, match=r"expected an uncompressed tar at .*gzip.tar, found gzip"):
        list_tar(f"{tmp_path}/gzip.tar")
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(InputError, match=r"pipe.tar, found no regular file"):
        list_tar(f"{tmp_path}/pipe.tar")
