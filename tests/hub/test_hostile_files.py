"""No generator file can do more harm than an error message: what is in it is not believed."""

from __future__ import annotations

import os
import pickle
import resource
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.support.generator_files import raw, refused
from tests.support.toy_generator import pack
from torch_geninit.errors import GeneratorFileError
from torch_geninit.hub import file

pytestmark = pytest.mark.usefixtures("toy_kind")


class TestNotAGeneratorFile:
    def test_missing(self, path: Path) -> None:
        with pytest.raises(GeneratorFileError, match=r"toy\.safetensors.*No such file"):
            file.read(path)

    def test_directory_says_what_is_inside(self, path: Path) -> None:
        path.mkdir()
        (path / "inner.safetensors").touch()
        with pytest.raises(GeneratorFileError, match=r"directory.*inner\.safetensors"):
            file.read(path)

    def test_named_pipe_does_not_block(self, path: Path) -> None:
        os.mkfifo(path)
        with pytest.raises(GeneratorFileError, match="not a regular file"):
            file.read(path)

    def test_pickles_are_not_run(self, path: Path, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "executed"),)

        refused(path, pickle.dumps(Hostile()), "pickle", "never loaded", f"convert {path.name}")
        torch.save(Hostile(), path)
        refused(path, path.read_bytes(), "torch.save", "never loaded")
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        ("content", "part"),
        [
            (b"", "0 bytes"),
            (b"\x05\x00\x00", "3 bytes"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
            (b"<!doctype html><html><body>503</body></html>", "web page"),
            (b"\x00" * 64, "instead of '{'"),
            pytest.param(os.urandom(7) + b"\x7f" + os.urandom(64), "announces a header", id="noise"),
        ],
    )
    def test_something_else(self, path: Path, content: bytes, part: str) -> None:
        refused(path, content, part)

    def test_plain_weights(self, path: Path) -> None:
        save_file({"weight": torch.zeros(2)}, path)
        refused(path, path.read_bytes(), "no 'torch_geninit' config", "load_model")


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


class TestHeader:
    """Each header breaks the format in one place; the data behind it would be fine."""

    @pytest.mark.parametrize(
        ("header", "data", "part"),
        [
            ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12), "overlaps"),
            ({"a": F32, "b": F32}, bytes(8), "overlaps"),
            ({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, bytes(20), "gap"),
            ({"a": {**F32, "data_offsets": [8, 16]}}, bytes(16), "gap"),
            ({"a": F32}, bytes(4), "truncated"),
            ({"a": F32}, bytes(12), "belong to no tensor"),
            ({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8), "span -8"),
            ({"a": {**F32, "data_offsets": [-8, 0]}}, bytes(8), "data_offsets"),
            ({"a": {**F32, "data_offsets": [0, 8, 16]}}, bytes(16), "data_offsets"),
            ({"a": {**F32, "data_offsets": [0.0, 8.0]}}, bytes(8), "data_offsets"),
            ({"a": {**F32, "data_offsets": [False, 8]}}, bytes(8), "data_offsets"),
            ({"a": {**F32, "shape": [10**9]}}, bytes(8), "takes 4000000000 bytes"),
            ({"a": {**F32, "shape": [2**62, 2**62], "data_offsets": [0, 2**62]}}, bytes(8), "takes"),
            ({"a": {**F32, "shape": [2**64]}}, bytes(8), "shape"),
            ({"a": {**F32, "shape": [-2]}}, bytes(8), "shape"),
            ({"a": {**F32, "shape": [1] * 17 + [2]}}, bytes(8), "at most 16"),
            ({"a": {**F32, "shape": "2"}}, bytes(8), "shape"),
            ({"a": {**F32, "dtype": "F33"}}, bytes(8), "F33"),
            ({"a": {**F32, "dtype": ["F32"]}}, bytes(8), "dtype"),
            ({"a": {**F32, "extra": 1}}, bytes(8), "exactly dtype, shape and data_offsets"),
            ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "exactly dtype, shape and data_offsets"),
            ({"a": [1, 2]}, bytes(8), "exactly dtype, shape and data_offsets"),
            ({"a": F32, "__metadata__": {"torch_geninit": 1}}, bytes(8), "__metadata__"),
            ({"a": F32, "__metadata__": []}, bytes(8), "__metadata__"),
            (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":1}', bytes(8), "'a' appears twice"),
            (b'{"a":{"dtype":"F16","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8), "twice"),
            (b'{"__metadata__":{"torch_geninit":"{}","torch_geninit":"{}"}}', b"", "twice"),
            (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8), "NaN"),
            (b'{"a":1e999}', b"", "too large"),
            (b'{"a":' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
            (b'{"a":' + b"[" * 200_000, b"", "nested too deeply"),
            (b'{"a":' * 100_000, b"", "nested too deeply"),
            (b'{"\xff":1}', b"", "not valid JSON"),
            (b'{"a"', b"", "not valid JSON"),
            (b"{}garbage", b"", "not valid JSON"),
            (b"[]", b"", "instead of '{'"),
            (b" {}", b"", "instead of '{'"),
        ],
    )
    def test_refused(self, path: Path, header: Any, data: bytes, part: str) -> None:
        refused(path, pack(header, data), part)

    def test_length_is_not_believed(self, path: Path) -> None:
        for length in (2**63, 2**40, (1 << 20) + 1, 100):
            refused(path, pack({}, length=length), f"header of {length} bytes")

    def test_huge_file_costs_no_memory(self, path: Path) -> None:
        with open(path, "wb") as sparse:
            sparse.write(struct.pack("<Q", 1 << 30) + b"{")
            sparse.truncate(4 << 30)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        with pytest.raises(GeneratorFileError, match="announces a header"):
            file.read(path)
        assert time.process_time() - start < 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
        os.truncate(path, file.MAX_FILE_BYTES + 1)
        with pytest.raises(GeneratorFileError, match="larger than"):
            file.read(path)


class TestMutations:
    """Whatever happens to a sound file, the reader answers with a generator or with its own error."""

    SOUND = raw()

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_bytes(self, path: Path, data: st.DataObject) -> None:
        content = bytearray(self.SOUND)
        # Beyond the header only values change, which a structural check can't see.
        header = 8 + int.from_bytes(content[:8], "little")
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, header - 1))
            content[position] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content))) :]
        self.check(path, bytes(content))

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        entries=st.dictionaries(
            st.sampled_from(["layers.0.weight", "layers.0.bias", "steps", "x", "__metadata__"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["dtype", "shape", "data_offsets", "torch_geninit"]),
                        inner,
                        max_size=3,
                    )
                ),
                max_leaves=8,
            ),
        )
    )
    def test_json(self, path: Path, entries: dict[str, Any]) -> None:
        self.check(path, pack(entries, self.SOUND[-200:]))

    @staticmethod
    def check(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        try:
            generator = file.read(path)
        except GeneratorFileError as error:
            assert str(path) in str(error)
        else:
            assert all(torch.isfinite(p).all() for p in generator.parameters())
