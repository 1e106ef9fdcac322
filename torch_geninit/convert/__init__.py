"""Published checkpoints -> our files (``python -m torch_geninit.convert``): all that reads pickles."""
