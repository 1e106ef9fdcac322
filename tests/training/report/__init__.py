"""Tests of torch_geninit/training/report."""
