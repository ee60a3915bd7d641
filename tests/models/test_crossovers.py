from __future__ import annotations

import json

import pytest

from russet.engine.paths import crossovers_file
from russet.models.crossovers import Crossovers, Kind, summary

KIND = Kind(4, 64, "float16", 4**12)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "crossovers.json"


def test_what_was_measured_is_found_again(path):
    first = Crossovers("a GPU", path)
    assert KIND not in first
    first[KIND] = 320
    first[KIND._replace(bits=2)] = None
    again = Crossovers("a GPU", path)
    assert again[KIND] == 320
    assert KIND._replace(bits=2) in again
    assert again[KIND._replace(bits=2)] is None
    assert [file.name for file in path.parent.iterdir()] == ["crossovers.json"]


def test_another_device_measures_for_itself(path):
    Crossovers("a GPU", path)[KIND] = 320
    other = Crossovers("another GPU", path)
    assert KIND not in other
    other[KIND] = 900
    assert Crossovers("a GPU", path)[KIND] == 320


def test_two_processes_keep_each_others_measurements(path):
    one, two = Crossovers("a GPU", path), Crossovers("a GPU", path)
    one[KIND] = 320
    two[KIND._replace(bits=2)] = 200
    assert Crossovers("a GPU", path).found == {str(KIND): 320, str(KIND._replace(bits=2)): 200}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a GPU": 3}', "\x00\xff", "null"])
def test_a_damaged_file_counts_as_empty_and_is_replaced(path, text):
    path.parent.mkdir()
    path.write_text(text)
    known = Crossovers("a GPU", path)
    assert known.found == {}
    known[KIND] = 320
    assert Crossovers("a GPU", path)[KIND] == 320


def test_entries_that_are_no_row_counts_are_left_out(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"a GPU": {"a": "320", "b": -1, "c": True, "d": 320, "e": None, "f": 1.5}}))
    assert Crossovers("a GPU", path).found == {"d": 320, "e": None}


def test_bytes_that_are_no_text(path):
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe{")
    assert Crossovers("a GPU", path).found == {}


def test_a_cache_that_cannot_be_written_is_no_error(path):
    path.parent.write_text("not a folder")
    known = Crossovers("a GPU", path)
    known[KIND] = 320
    assert known[KIND] == 320
    assert KIND not in Crossovers("a GPU", path)


def test_it_lies_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path))
    Crossovers("a GPU")[KIND] = 320
    assert crossovers_file() == tmp_path / "crossovers.json"
    assert KIND in Crossovers("a GPU")


def test_the_summary_goes_by_bits():
    found = {str(KIND): 320, str(KIND._replace(bits=2)): None, str(KIND._replace(bits=8)): 700}
    assert summary(found) == "2 bits never; 4 bits from 320 rows on; 8 bits from 700 rows on"
    found |= {str(KIND._replace(weights=4**9)): 900, str(KIND._replace(bits=8, weights=4**9)): None}
    assert summary(found) == (
        "2 bits never; 4 bits from 320 to 900 rows on, by size; 8 bits from 700 rows on, some sizes never"
    )
    assert summary({}) == ""
