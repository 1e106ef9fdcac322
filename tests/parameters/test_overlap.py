"""Overlaps in memory, held against writing to one tensor and looking at the other."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_geninit.parameters import overlap
from torch_geninit.parameters.overlap import Overlap, find_overlaps


def views() -> dict[str, Tensor]:
    base = torch.zeros(4, 6)
    return {
        "all": base,
        "turned": base.t(),
        "first rows": base[:2],
        "last rows": base[2:],
        "even columns": base[:, ::2],
        "odd columns": base[:, 1::2],
        "column": base[:, 3],
        "element": base[1, 1],
        "bytes": base.view(torch.uint8)[:, :5],
        "expanded": base[0, :1].expand(7),
        "another": torch.zeros(4, 6),
        "empty": base[:0],
    }


def touched(written: Tensor, seen: Tensor) -> Tensor:
    """Where ``seen`` changes when every byte of ``written`` does."""
    before = seen.clone()
    value = torch.tensor([1] * written.element_size(), dtype=torch.uint8).view(written.dtype)[0]
    for index in product(*map(range, written.shape)):  # an expanded view can't be written as a whole
        written[index] = value
    return seen != before


@pytest.mark.parametrize(("one", "other"), [*combinations(views(), 2)])
def test_overlapping_is_what_changes_with_the_other(one: str, other: str) -> None:
    tensors = views()
    a, b = tensors[one], tensors[other]
    found = find_overlaps([(one, a), (other, b)])
    if not a.numel() or not b.numel():
        assert found == []
        return
    changed = touched(a, b)
    assert bool(found) == bool(changed.any())
    if found and found[0].inner == other:
        assert found[0].inside == bool(changed.all())


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_two_strided_views(data: st.DataObject) -> None:
    def view(label: str) -> set[int]:
        shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3), label=label)
        strides = data.draw(st.lists(st.integers(0, 5), min_size=len(shape), max_size=len(shape)))
        drawn.append(base.as_strided(shape, strides, data.draw(st.integers(0, 20))))
        places = set(numbers.as_strided(shape, strides, drawn[-1].storage_offset()).flatten().tolist())
        # A tensor that overlaps itself, other than by expansion, is no parameter.
        assume(len(places) == math.prod(n if s else 1 for n, s in zip(shape, strides, strict=True)))
        return places

    base, numbers, drawn = torch.zeros(64), torch.arange(64), []
    a, b = view("a"), view("b")
    found = find_overlaps(zip("ab", drawn, strict=True))
    assert bool(found) == bool(a & b)
    if found:
        inner, outer = (a, b) if found[0].inner == "a" else (b, a)
        assert found[0].inside == (inner <= outer)


def test_views_on_the_meta_device_go_by_their_storage() -> None:
    base = torch.zeros(4, 6, device="meta")
    others = torch.zeros(4, 6, device="meta")
    named = [("base", base), ("row", base[1]), ("other", others)]
    assert find_overlaps(named) == [Overlap("row", "base", True)]


def test_memory_too_large_to_compare_counts_as_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.zeros(4, 6)
    named = [("even", base[:, ::2]), ("odd", base[:, 1::2])]
    assert find_overlaps(named) == []
    monkeypatch.setattr(overlap, "LARGEST_MAP", 4)
    assert find_overlaps(named) == [Overlap("odd", "even", False)]


def test_neighbours_in_one_storage_share_nothing() -> None:
    flat = torch.zeros(100)
    assert find_overlaps([(str(i), nn.Parameter(part)) for i, part in enumerate(flat.chunk(7))]) == []


def test_what_has_no_memory_overlaps_nothing() -> None:
    sparse = torch.eye(3).to_sparse()
    assert find_overlaps([("lazy", nn.UninitializedParameter()), ("a", sparse), ("b", sparse)]) == []


def test_memory_that_was_freed_overlaps_nothing() -> None:
    freed = torch.zeros(3), torch.zeros(3)
    for tensor in freed:
        tensor.untyped_storage().resize_(0)
    assert find_overlaps(zip("ab", freed, strict=True)) == []
