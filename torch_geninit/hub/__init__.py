"""Name -> verified file -> generator."""
