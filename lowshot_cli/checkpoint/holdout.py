"""The two halves of the hold-out."""

from __future__ import annotations

# What sets the bias must not also shape rows, so the hold-out is halved image by image.
SHAPING, CALIBRATION = slice(0, None, 2), slice(1, None, 2)


# More of them than this take longer than everything else that adding a class takes.
_MANY_COSINES = 2**26
