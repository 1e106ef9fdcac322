"""What generators are worth: the protocol, networks held out, ensembles, first epochs."""
