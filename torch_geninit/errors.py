"""The warning and the errors of this package that its parts share, and whom a warning tells."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import FrameType
from warnings import warn

_PASSED = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)
"""Files whose frames are not the caller's: this package, and what decorates its functions."""


class GenInitWarning(UserWarning):
    """Something was left as it was, or came out as one may not expect, though nobody asked for that.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     model = geninit.vae_(torch.nn.Linear(3, 4))
        >>> caught[0].category.__name__
        'GenInitWarning'
    """


class StrictError(ValueError):
    """Some parameters would be left as they are, and the caller asked for an error then.

    Examples:
        >>> layer = torch.nn.Conv2d(16, 16, 9)
        >>> try:
        ...     geninit.vae_(layer, strict=True)
        ... except geninit.StrictError:
        ...     layer.reset_parameters()  # no VAE was trained on 9x9 kernels
    """


class GeneratorFileError(ValueError):
    """A generator file that can't be used; the message names the file, what is wrong and what to do.

    Examples:
        >>> try:
        ...     geninit.load("damaged.safetensors")
        ... except geninit.GeneratorFileError as error:
        ...     print(str(error).partition(":")[0])
        damaged.safetensors can't be read as a generator
    """


def warn_caller(message: str) -> None:
    """Warn at the line outside of this package that called into it, however many calls lie between."""
    depth = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PASSED):
        frame, depth = frame.f_back, depth + 1
    warn(message, GenInitWarning, stacklevel=depth)
