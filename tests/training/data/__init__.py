"""Tests of torch_geninit/training/data."""
