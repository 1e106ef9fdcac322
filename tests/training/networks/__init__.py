"""Tests of torch_geninit/training/networks."""
