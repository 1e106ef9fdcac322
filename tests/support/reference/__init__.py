"""Slow twins of what the package computes fast, written from descriptions of the originals."""
