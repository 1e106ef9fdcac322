"""Tests of torch_geninit._utils."""
