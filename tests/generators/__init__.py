"""Tests of torch_geninit/generators."""
