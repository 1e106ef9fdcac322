"""Every initialiser, with a small generator."""

from __future__ import annotations

import pytest

from tests.support.interruptions import VERBS, Call, File, calling


@pytest.fixture(params=VERBS)
def initialise(request: pytest.FixtureRequest, tiny_file: File) -> Call:
    return calling(request.param, tiny_file(VERBS[request.param]))
