"""Initialisations of other authors, for evaluation only: what generators are compared with."""
