"""What a verb warns or raises when it would leave parameters as they are."""


class GenInitWarning(UserWarning):
    """Some parameters were left as they were, though nobody asked for that."""


class StrictError(ValueError):
    """Some parameters would be left as they are, and the caller asked for an error then."""
