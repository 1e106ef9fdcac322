"""A picture of a graph."""
