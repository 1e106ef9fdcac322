"""What is told of a tensor without its values agrees with the addresses of its elements."""

from __future__ import annotations

from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_geninit._utils.tensors import has_no_values, overlaps_itself


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=4))
def test_a_tensor_overlaps_itself_where_two_elements_have_one_address(layout: list[tuple[int, int]]) -> None:
    shape, strides = [extent for extent, _ in layout], [stride for _, stride in layout]
    tensor = torch.as_strided(torch.zeros(200), shape, strides)
    places = [
        sum(index * stride for index, stride in zip(indices, strides, strict=True))
        for indices in product(*map(range, shape))
    ]
    assert overlaps_itself(tensor) == (len(set(places)) < len(places))


def test_meta_and_fake_tensors_have_no_values() -> None:
    with FakeTensorMode():
        fake = torch.zeros(2)
    assert [has_no_values(t) for t in (fake, torch.zeros(2, device="meta"), torch.zeros(2))] == [
        True,
        True,
        False,
    ]
