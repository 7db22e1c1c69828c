"""mPLUG-Owl2 on one's own rows: what `plait.recipes.finetune_talk` needs of the family."""

from __future__ import annotations

from functools import partial

from plait.recipes import mplug_owl2
from plait.recipes import mplug_owl2_rows as rows
from plait.recipes.finetune_talk import Talker

FRAMES = 8

JOBS = Talker(
    load=mplug_owl2.loaded,
    decode=partial(rows.read_talk, FRAMES),
    collate=rows.talked,
    measured=rows.talked,
    objective=mplug_owl2.answer_loss,
    save=mplug_owl2.save,
    full_lr=2e-5,
    lora_lr=1e-4,
).jobs()
