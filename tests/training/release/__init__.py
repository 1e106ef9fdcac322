"""Tests of torch_geninit/training/release."""
