"""An architecture as data, and how it is read from a model."""
