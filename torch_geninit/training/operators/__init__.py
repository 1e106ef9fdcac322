"""Operators that make a training step cheaper on CPUs, and the pass that puts them into a network."""
