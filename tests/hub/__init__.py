"""Tests of torch_geninit/hub."""
