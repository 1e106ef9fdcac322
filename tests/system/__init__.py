"""The package as a whole: its wheel, documents and examples, long and distributed use."""
