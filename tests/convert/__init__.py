"""Tests of torch_geninit/convert."""
