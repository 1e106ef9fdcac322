"""Tests of torch_geninit/training/evaluate."""
