import io
import subprocess
import tarfile
from pathlib import Path

import fsspec
import pytest

from pipeline.sources.listing import list_media_files


def test_linked_folders_are_searched(tmp_path: Path) -> None:
    for name in ("field/a.wav", "disk2/b.wav", "field/._a.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    (tmp_path / "field/link").symlink_to(tmp_path / "disk2")
    names = [file.name for file in list_media_files([str(tmp_path / "field")])]
    assert names == [str(tmp_path / "field/a.wav"), str(tmp_path / "field/link/b.wav")]


@pytest.mark.parametrize("extension", "3gp ac3 au caf m4b mp2 ts w64 wv".split())
def test_every_decodable_extension_is_found(extension: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{extension.upper()}").write_bytes(b"content")
    assert len(list(list_media_files([str(tmp_path)]))) == 1


def test_hidden_files_in_tars_and_prefixes_are_skipped(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("._a.wav", "folder/._b.wav", "a.wav"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert [file.name for file in list_media_files([f"{tmp_path}/a.tar"])] == [f"{tmp_path}/a.tar/a.wav"]
    for name in ("prefix/._a.wav", "prefix/a.wav"):
        with fsspec.open(f"memory://{name}", "wb") as file:
            file.write(b"content")  # pyright: ignore
    assert [file.name for file in list_media_files(["memory://prefix"])] == ["memory:///prefix/a.wav"]


@pytest.mark.process
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_member_of_a_tar_is_read_by_its_map(form: str, tmp_path: Path) -> None:
    content = bytearray(bytes(range(1, 256)) * 16) + bytearray(300_000) + bytearray(bytes(range(1, 256)) * 16)
    content[:] = content.ljust(400_000, b"\0")
    (tmp_path / "plain.wav").write_bytes(content)
    subprocess.run(["cp", "--sparse=always", "plain.wav", "sparse.wav"], cwd=tmp_path, check=True)
    (tmp_path / "next.wav").write_bytes(b"\xff" * 100_000)
    command = ["tar", "--sparse", f"--format={form}", "-cf", "a.tar", "sparse.wav", "next.wav"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 200_000, "this file system stores no holes"
    files = {Path(file.name).name: file for file in list_media_files([f"{tmp_path}/a.tar"])}
    for name, expected in (("sparse.wav", bytes(content)), ("next.wav", b"\xff" * 100_000)):
        with files[name].open() as copy:
            assert copy.read_bytes() == expected
