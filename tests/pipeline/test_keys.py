import numpy as np
import pyarrow as pa
import pytest

from pipeline import keys
from pipeline.keys import has_repeats, positions_of


@pytest.mark.parametrize("collide", [False, True])
def test_places_are_those_that_arrow_finds(collide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if collide:
        monkeypatch.setattr(keys, "hashes_of", lambda names: np.arange(len(names), dtype=np.uint64) % 7)
    monkeypatch.setattr(keys, "BATCH_ROWS", 10)
    random = np.random.default_rng(0)
    among = pa.chunked_array([[f"id_{number}" for number in random.permutation(200)[:150]]])
    wanted = pa.chunked_array([[f"id_{number}" for number in random.permutation(200)[:90]], ["", "id_7"]])
    expected = pa.compute.index_in(wanted, among.combine_chunks()).fill_null(-1).to_numpy()  # pyright: ignore
    np.testing.assert_array_equal(positions_of(wanted, among), expected)
    np.testing.assert_array_equal(positions_of(wanted, pa.chunked_array([[]], pa.string())), -1)


def test_a_hash_depends_on_the_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["", "a", "ä", "abcdefgh", "abcdefghi", "1234567890" * 9, "é" * 200, "x" * 10_000, None, "a"]
    together = keys.hashes_of(pa.chunked_array([names]))
    monkeypatch.setattr(keys, "BATCH_ROWS", 1)
    np.testing.assert_array_equal(together, keys.hashes_of(pa.chunked_array([names[:3], names[3:]])))
    assert len(set(together.tolist())) == len(names) - 2  # the one that is missing counts as empty
    assert together[1] == together[-1]


def test_ids_that_count_on_have_hashes_of_their_own() -> None:
    # Of ten million such keys, two pairs had the same hash while each word was mixed only once.
    names = ["000006ca38f_277000", "000006e438f_279000", "0000080d961_513000", "00000827961_515000"]
    assert len(set(keys.hashes_of(pa.chunked_array([names])).tolist())) == len(names)


def test_repeats_are_seen() -> None:
    names = [f"id_{number}" for number in range(100)]
    assert not has_repeats(pa.chunked_array([names]))
    assert has_repeats(pa.chunked_array([names, ["id_3"]]))
    assert not has_repeats(pa.chunked_array([[]], pa.string()))
