"""Tests of torch_geninit/training/controls."""
