"""Objectives: pure functions, tensors in, a scalar loss out, formula and source in the docstring.

A module per kind of objective; `plait.training` and the families combine and weight them.

    captioning      next tokens: captions, answers, instructions, conversations
    classification  classes, several labels, choices, one box (ONE-PEACE's heads)
    contrastive     paired vectors of two modalities, with copies of all processes
    denoising       student against teacher on masked positions (ONE-PEACE)
    distillation    soft labels of a slow copy (mPLUG-2)
    grounding       boxes as coordinate tokens or as numbers (mPLUG-2)
    masked          masked language modelling
    matching        contrast with queues, hard negatives, match or not (mPLUG-2)
    scst            captions by their CIDEr reward
"""
