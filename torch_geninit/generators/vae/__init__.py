"""Slice VAEs: kernels drawn layer by layer."""
