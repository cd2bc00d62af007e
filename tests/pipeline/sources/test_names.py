import pytest

from pipeline.errors import ConfigError
from pipeline.sources.names import Reading, compile_pattern, readings_of, start_matches, stem_of

YTID, START_MS = "-0_a-B3_d0-", 390_000

NAMES = """
    {id}  Y{id}  id_{id}
    {id}_390.0-400.0  Y{id}_390.000_400.000  {id}_000390  {id}_390_400  {id}_390000_400000  {id}-390-400  Y{id}_390
    {id}_390  {id}_390000
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_names_of_published_copies_and_downloaders_state_id_and_start(name: str) -> None:
    readings = [reading for reading in readings_of(name.format(id=YTID)) if reading.ytid == YTID]
    assert readings and all(start_matches(reading.start, START_MS) for reading in readings)
    assert readings[0].is_cut == (name != "{id}")


@pytest.mark.parametrize("name", ["{id}_30", "{id}_391.0_401.0", "{id}-39-49"])
def test_name_with_another_start_is_another_segment(name: str) -> None:
    readings = [reading for reading in readings_of(name.format(id=YTID)) if reading.ytid == YTID]
    assert readings and not any(start_matches(reading.start, START_MS) for reading in readings)


def test_ambiguous_name_has_every_reading() -> None:
    first, second, whole = readings_of("id_abcdefgh_30_40")
    assert (first, second) == (Reading("id_abcdefgh", "30", True), Reading("abcdefgh_30", "40", True))
    assert whole == Reading("id_abcdefgh_30_40")


def test_stem_drops_folders_and_every_media_extension() -> None:
    assert stem_of(f"audio/eval/{YTID}.mp4.wav") == YTID
    assert stem_of("sample-000000000.wav") == "sample-000000000"


@pytest.mark.parametrize("pattern", ["(", r"[\w-]{11}"])
def test_pattern_without_an_id_group_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="--id-pattern"):
        compile_pattern(pattern)
