"""Numbers that a score may be made of: NaN and infinity are refused, since every comparison with them looks like a hit
or a miss (an arg-max over NaN says class 0, a sort puts it first)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def finite(values: Any, what: str = "scores", dtype: Any = np.float64) -> npt.NDArray[np.float64]:
    """The values as an array, refused where one is NaN or infinite.

    Args:
        values: anything numpy takes.
        what: what they are called in the message.
        dtype: of the result; None leaves them as they are, without a copy of large ones.

    Returns:
        The array.

    Raises:
        ValueError: one line with the first bad value and its place.
    """
    found = np.asarray(values, dtype=dtype)
    if not (is_finite := np.isfinite(found)).all():
        first = tuple(np.argwhere(~is_finite)[0].tolist())
        place = f" at {', '.join(map(str, first))}" if first else ""
        value = "NaN" if np.isnan(found[first]) else found[first]
        raise ValueError(f"expected finite {what}, got {value}{place}; check what the model gave")
    return found
