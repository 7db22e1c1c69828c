"""Bytes and paths -> arrays; limits are enforced here, before anything is decoded."""

from plait.media.kinds import kind_of
from plait.media.limits import MediaError, raised

__all__ = ["MediaError", "kind_of", "raised"]
