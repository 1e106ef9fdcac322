"""From a run to a file that others use: export, model card, upload."""
