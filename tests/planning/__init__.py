"""Tests of torch_geninit/planning."""
