"""Tests of torch_geninit/training/runs."""
