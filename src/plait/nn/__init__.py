"""Leaves, encoders, trunks and a decoder: torch only, plain numbers in, never a config object.

layers, attention, positions   what every network here is built of
adapters                       entrances of ONE-PEACE: text, image and audio to tokens
vit, temporal                  vision towers of the Owls and of mPLUG-2
abstractor                     queries that read patches (both Owls)
bert, encoder, decoder         trunks in which modalities meet, shared or with ways
"""

from __future__ import annotations
