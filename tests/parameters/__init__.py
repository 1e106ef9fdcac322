"""Tests of torch_geninit/parameters."""
