"""Folders of runs: checkpoints, tasks done once, what a measurement depends on."""
