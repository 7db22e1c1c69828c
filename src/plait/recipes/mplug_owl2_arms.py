"""Arms of the small mPLUG-Owl2 study: a name says what is routed, what trains, on what, and how large pictures are.

"shared 96 px 16 queries image data tower trains" -> Arm
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from plait.errors import UsageError
from plait.models.mplug_owl2.config import ADAPTIVE

SIDE, PATCH, QUERIES = 64, 8, 8
PARTS = {"both": (0, 0, 0, 0, 1), "image": (0,), "text": (1,)}
"""Data -> what the steps of a turn show: 0 drawings, 1 sentences."""


@dataclass(frozen=True)
class Arm:
    """One model of the study. routed: parts of the decoder with a way each; trains: patterns beside the abstractor.

    trains_vision: the tower too; image_size, num_queries: of the resized warm start; data: a key of `PARTS`.
    """

    routed: tuple[str, ...] = ADAPTIVE
    trains: tuple[str, ...] = (r"re:\.visual\.",)
    trains_vision: bool = False
    image_size: int = SIDE
    num_queries: int = QUERIES
    data: str = "both"

    @property
    def patterns(self) -> tuple[str, ...]:
        """Parameter patterns for `Stage.trainable`."""
        return ("model.abstractor.*", *(("model.vision.*",) if self.trains_vision else ()), *self.trains)


DECODERS = {
    "adaptive all ways": Arm(trains=(r"re:\.(text|visual)\.",)),
    "adaptive": Arm(),
    "shared": Arm(routed=(), trains=(r"re:decoder\.layers\.\d+\.(attn_norm|mlp_norm|attn\.[kv]_proj)\.",)),
    "abstractor only": Arm(routed=(), trains=()),
}
"""What an arm's name begins with. `adaptive` and `shared` train equally many weights, `adaptive all ways` the norms,
keys and values of text as well."""

MAIN = ("adaptive", "shared", "abstractor only")
ALL = (
    "adaptive", "adaptive all ways", "shared", "abstractor only", "adaptive tower trains", "shared tower trains",
    "adaptive image data", "shared image data", "shared text data", "adaptive 48 px", "adaptive 96 px",
    "adaptive 4 queries", "adaptive 16 queries",
)  # fmt: skip

_SWITCH = re.compile(
    r" (?:(?P<image_size>\d+) px|(?P<num_queries>\d+) queries|(?P<data>\w+) data|(?P<tower>tower trains))"
)


def arm_of(name: str) -> Arm:
    """The arm of a name: a key of `DECODERS`, then in any order `N px`, `N queries`, `image data` or `text data`,
    `tower trains`. Raises UsageError for other words, for pictures that patches do not fill, for data that reach
    nothing that trains."""
    begin = next((key for key in DECODERS if f"{name} ".startswith(f"{key} ")), None)
    if begin is None:
        raise UsageError(f"expected an arm that begins with {', '.join(DECODERS)}, got {name!r}")
    arm, rest = DECODERS[begin], name.removeprefix(begin)
    while rest:
        found = _SWITCH.match(rest)
        if found is None:
            raise UsageError(
                f"expected N px, N queries, image data, text data or tower trains in arm {name!r}, got {rest.strip()!r}"
            )
        key, value = next((key, value) for key, value in found.groupdict().items() if value)
        arm = replace(arm, **_change(key, value))
        rest = rest[found.end() :]
    if arm.image_size % PATCH or not arm.image_size or not arm.num_queries:
        raise UsageError(f"expected a multiple of {PATCH} px and some queries, got arm {name!r}")
    if arm.data not in PARTS:
        raise UsageError(f"expected data among {', '.join(PARTS)}, got {arm.data!r} in arm {name!r}")
    if arm.data == "text" and begin in ("adaptive", "abstractor only"):
        raise UsageError(f"expected data with images where only images train, got arm {name!r}")
    return arm


def _change(key: str, value: str) -> dict[str, object]:
    if key == "tower":
        return {"trains_vision": True}
    return {key: value if key == "data" else int(value)}
