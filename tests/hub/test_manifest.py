"""The manifest: strict about every field, found from every kind of installation, and true of what ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.toy_generator import record
from torch_geninit.graph import vocabulary
from torch_geninit.hub import file, manifest
from torch_geninit.hub.manifest import ManifestError
from torch_geninit.training.release.export import reference_graphs


def text(*records: Any, **top: Any) -> str:
    return json.dumps({"schema": 1, "generators": list(records), **top})


PUBLISHED = {"repo_id": "someone/toy", "revision": "0123456789abcdef" * 2 + "01234567"}


class TestParse:
    def test_a_complete_record(self) -> None:
        published = record(b"", name="other", **PUBLISHED)
        first, second = manifest.parse(text(record(b"abc", size=3), published | {"size": 1}))
        assert (first.name, first.size, first.repo_id) == ("toy", 3, None)
        assert first.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert second.revision == "0123456789abcdef0123456789abcdef01234567"
        assert second.numbers["by layer"]["kl"] == [1.0, 2.0]

    def test_an_empty_list_is_valid(self) -> None:
        assert manifest.parse(text()) == ()

    @pytest.mark.parametrize("field", sorted(record(b"")))
    def test_each_field_is_required_and_checked(self, field: str) -> None:
        good = record(b"abc")
        lacking = {key: value for key, value in good.items() if key != field}
        label = "number 0" if field == "name" else "'toy'"
        with pytest.raises(ManifestError, match=f"record {label}: missing field '{field}'"):
            manifest.parse(text(lacking))
        with pytest.raises(ManifestError, match=f"record .*field '{field}"):
            manifest.parse(text(good | {field: [None]}))
        with pytest.raises(ManifestError, match=f"record .*field '{field}"):
            manifest.parse(text(good | {field: True}))

    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"endpoint": "http://mirror"}, "unknown field 'endpoint'"),
            ({"name": "Toy"}, "'name'"),
            ({"name": "../toy"}, "'name'"),
            ({"name": ""}, "'name'"),
            ({"kind": "pickle"}, "one of vae, ghn, noise-ghn"),
            ({"filename": "../toy.safetensors"}, "'filename'"),
            ({"filename": "/etc/toy.safetensors"}, "'filename'"),
            ({"filename": "a/toy.safetensors"}, "'filename'"),
            ({"filename": "a\\toy.safetensors"}, "'filename'"),
            ({"filename": "..safetensors"}, "'filename'"),
            ({"filename": "toy.bin"}, "'filename'"),
            ({"filename": "toy.safetensors\n"}, "'filename'"),
            ({"filename": "toy\0.safetensors"}, "'filename'"),
            ({"sha256": "0" * 63}, "'sha256'"),
            ({"sha256": "A" * 64}, "'sha256'"),
            ({"size": -1}, "'size'"),
            ({"size": 0}, "'size'"),
            ({"size": 1.0}, "'size'"),
            ({"size": 10**20}, "'size'"),
            (PUBLISHED | {"revision": "main"}, "a branch or tag can move"),
            (PUBLISHED | {"revision": "v1.0"}, "a branch or tag can move"),
            (PUBLISHED | {"revision": "0" * 7}, "a branch or tag can move"),
            (PUBLISHED | {"revision": None}, "both or neither"),
            ({"revision": "0" * 40}, "both or neither"),
            (PUBLISHED | {"repo_id": "http://mirror/someone/toy"}, "'repo_id'"),
            (PUBLISHED | {"repo_id": "toy"}, "'repo_id'"),
            (PUBLISHED | {"repo_id": "../toy"}, "'repo_id'"),
            (PUBLISHED | {"repo_id": "someone/.."}, "'repo_id'"),
            (PUBLISHED | {"repo_id": "someone/toy/more"}, "'repo_id'"),
            (PUBLISHED | {"repo_id": "some--one/toy"}, "'repo_id'"),
            ({"vocabulary": {"version": 10**9, "graphs": {}}}, "upgrade torch-geninit"),
            ({"vocabulary": {"version": 1, "graphs": {"a": 1}}}, "'vocabulary'.graphs"),
            ({"input": {"size": [3], "mean": [0], "std": [0]}}, "'input'.std"),
            ({"numbers": {"a": "high"}}, "'numbers': 'a'"),
            ({"numbers": {"a": {"b": {"c": {"d": 1}}}}}, "'numbers': 'a': 'b': 'c'"),
            ({"licence": " "}, "'licence'"),
            ({"seed": -1}, "'seed'"),
            ({"duration_seconds": "1 h"}, "'duration_seconds'"),
            ({"core_hours": -1}, "'core_hours'"),
            ({"learning_rate": ""}, "'learning_rate'"),
        ],
    )
    def test_refused(self, changes: dict[str, Any], part: str) -> None:
        with pytest.raises(ManifestError) as caught:
            manifest.parse(text(record(b"abc") | changes), "here.json")
        assert part in str(caught.value)
        assert str(caught.value).startswith("here.json: record ")

    @pytest.mark.parametrize(
        ("content", "part"),
        [
            ("", "Expecting value"),
            ("[]", "expected an object"),
            ("null", "expected an object"),
            ("{}", "missing field 'schema'"),
            ('{"schema": 1}', "missing field 'generators'"),
            (text(schema=2), "field 'schema': expected 1, got 2"),
            (text(schema=True), "field 'schema': expected 1"),
            (text(generators={}), "field 'generators'"),
            (text(extra=1), "unknown field 'extra'"),
            (text(None), "record number 0"),
            (text("toy"), "record number 0"),
            (text(record(b"a"), record(b"b")), "record 'toy': field 'name': two records"),
            ('{"schema": 1, "schema": 1, "generators": []}', "'schema' appears twice"),
            ('{"schema": NaN, "generators": []}', "NaN"),
            ('{"schema": 1, "generators": ' + "[" * 100_000, "nested too deeply"),
            (" " * (manifest.MAX_BYTES + 1), "at most"),
            (b"\xff\xfe{}", "manifest"),
            (b"\xff", "manifest"),
        ],
    )
    def test_no_manifest(self, content: str | bytes, part: str) -> None:
        with pytest.raises(ManifestError, match="^pretrained_manifest.json: ") as caught:
            manifest.parse(content)
        assert part in str(caught.value)

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_mutations(self, data: st.DataObject) -> None:
        content = bytearray(text(record(b"abc"), record(b"x", name="b", **PUBLISHED)).encode())
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, len(content) - 1))
            content[position] = data.draw(st.sampled_from(b'{}[],:"\\0x-.eN \xff\n') | st.integers(0, 255))
        try:
            records = manifest.parse(bytes(content))
        except ManifestError:
            return
        for parsed in records:
            assert Path(parsed.filename).name == parsed.filename
            assert len(parsed.revision or "0" * 40) == 40


class TestFiles:
    def test_update_replaces_or_appends(self, tmp_path: Path) -> None:
        path = tmp_path / "manifest.json"
        path.write_text(text(record(b"a"), record(b"b", name="second")))
        (new,) = manifest.parse(text(record(b"changed")))
        manifest.update(new, path)
        assert [r.name for r in manifest.read(path)] == ["toy", "second"]
        assert manifest.read(path)[0] == new
        (third,) = manifest.parse(text(record(b"c", name="third")))
        manifest.update(third, path)
        assert [r.name for r in manifest.read(path)] == ["toy", "second", "third"]
        assert path.read_text().startswith('{\n  "schema": 1,')
        assert [child.name for child in tmp_path.iterdir()] == [path.name]

    def test_a_bad_update_changes_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "manifest.json"
        path.write_text(text(record(b"a")))
        before = path.read_bytes()
        (good,) = manifest.read(path)
        object.__setattr__(good, "sha256", "unknown")
        with pytest.raises(ManifestError, match="sha256"):
            manifest.update(good, path)
        assert path.read_bytes() == before

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match=r"gone\.json.*No such file.*install"):
            manifest.read(tmp_path / "gone.json")

    def test_inside_the_package_before_beside_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "torch_geninit"
        package.mkdir()
        monkeypatch.setattr(manifest, "PACKAGE", package)
        (tmp_path / manifest.FILENAME).write_text(text())
        assert manifest.locate() == tmp_path / manifest.FILENAME
        (package / manifest.FILENAME).write_text(text())
        assert manifest.locate() == package / manifest.FILENAME


class TestShipped:
    """What this very checkout ships."""

    def test_files_and_records_agree(self) -> None:
        records = {r.filename: r for r in manifest.read()}
        files = {path.name: path for path in manifest.SHIPPED.glob("*.safetensors")}
        assert set(files) <= set(records), "files without a record in the manifest"
        for name, record_ in records.items():
            if record_.repo_id is None:
                assert name in files, f"{record_.name} is not published, so its file has to ship"
            if name in files:
                config = file.read_config(files[name])
                assert (config["kind"], config["licence"]) == (record_.kind, record_.licence)
                assert (config["vocabulary"], config["input"]) == (record_.vocabulary, record_.input)

    def test_todays_tracer_sees_the_graphs_of_training(self) -> None:
        for record_ in manifest.read():
            if record_.vocabulary["graphs"] and (path := manifest.SHIPPED / record_.filename).exists():
                classes = len(file.read_config(path)["classes"])
                graphs = reference_graphs(classes, record_.input["size"])
                assert record_.vocabulary == {"version": vocabulary.VERSION, "graphs": graphs}

    def test_together_they_are_small(self) -> None:
        assert sum(path.stat().st_size for path in manifest.SHIPPED.glob("*")) <= 60e6
