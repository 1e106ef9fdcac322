"""Tests of torch_geninit/graph."""
