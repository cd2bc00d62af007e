import sys
from pathlib import Path

import pytest

from pipeline.config import PreprocessConfig
from pipeline.errors import InputError
from pipeline.metadata import load_metadata


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("s3://bucket/csv", "NoCredentialsError: .*AWS_ACCESS_KEY_ID"),
        ("gs://bucket/csv", "gcsfs"),
        ("nowhere://csv", "Protocol not known: nowhere"),
        ("http://127.0.0.1:9/csv", "ClientConnectorError"),
        ("/nowhere", "FileNotFoundError"),
    ],
)
def test_metadata_that_cannot_be_read_end_in_one_line(
    address: str, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as on a machine without the package
    with pytest.raises(
        InputError, match=rf"can't read {address}/class_labels_indices.csv: .*{problem}.*check --metadata"
    ) as error:
        load_metadata(PreprocessConfig(metadata=address))
    assert "\n" not in str(error.value)
