"""Tests; the folders mirror the package."""

import pytest

# Asserts that tests share say what they compared, as those in the tests do.
pytest.register_assert_rewrite("tests.support")
