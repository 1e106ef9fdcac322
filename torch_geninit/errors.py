"""What is warned or raised when something would be left as it is."""


class GenInitWarning(UserWarning):
    """Parameters or statistics were left as they were, though nobody asked for that."""


class StrictError(ValueError):
    """Some parameters would be left as they are, and the caller asked for an error then."""
