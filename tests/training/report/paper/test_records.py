"""Records: measured once, named by their settings, of one setup."""

from __future__ import annotations

from pathlib import Path

import pytest

from torch_geninit.training.report.paper.records import Records, digest


def test_the_same_settings_are_measured_once(tmp_path: Path) -> None:
    calls = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"value": len(calls)}

    for settings in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        assert Records(tmp_path).make("some", settings, {"x": 1}, work) == {"value": 1}
    assert Records(tmp_path).make("some", {"a": 1, "b": 3}, {"x": 1}, work) == {"value": 2}


def test_a_record_says_what_made_it(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.make("some", {"a": 1}, {"x": 1}, lambda: {"value": 1})
    (record,) = records.all("some")
    assert record["settings"] == {"a": 1}
    assert record["made"].keys() == {"version", "date", "machine"}
    assert records.setup("some") == {"x": 1}


def test_a_folder_has_one_setup(tmp_path: Path) -> None:
    Records(tmp_path).make("some", {"a": 1}, {"x": 1}, dict)
    with pytest.raises(ValueError, match="holds records of other settings"):
        Records(tmp_path).make("some", {"a": 2}, {"x": 2}, dict)


def test_a_record_that_was_edited_is_refused(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.make("some", {"a": 1}, {}, dict)
    path = tmp_path / "some" / f"{digest({'a': 1})}.json"
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(ValueError, match=f"{path.name}: expected a record named by the digest"):
        records.all("some")


def test_a_failed_measurement_is_not_recorded(tmp_path: Path) -> None:
    records = Records(tmp_path)
    with pytest.raises(ZeroDivisionError):
        records.make("some", {"a": 1}, {}, lambda: {"value": 1 / 0})
    assert not records.has("some", {"a": 1})
    assert records.make("some", {"a": 1}, {}, lambda: {"value": 1}) == {"value": 1}
