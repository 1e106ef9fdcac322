"""Model -> graph: a copy without data is run once and its operations are recorded."""
