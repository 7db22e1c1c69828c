# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Search your photographs by sound
#
# A sound, a text, or both at once, and the images that fit. All of them lie in one space of vectors, so
# nothing has to be written about an image before it is found. About a minute on one CPU core, of which most
# is unpacking and embedding.
#
# Install: `pip install '.[media,search]'`. As a notebook: `pip install jupytext`, `jupytext --to ipynb
# search_by_sound.py`.

# %%
import shutil
from pathlib import Path

import plait
from plait.data.manifest import read_manifest
from plait.data.mini import unpack_mini

# %% [markdown]
# ## The images
#
# Name a folder of your own in `PHOTOS`. Where there is none, the drawings that ship with Plait stand in:
# those held out from training, of the things whose sounds are held out too.
#
# `MODEL` is `nano`, which ships with Plait and knows drawings. For photographs name a converted ONE-PEACE
# here.

# %%
PHOTOS, MODEL = Path("photos"), "nano"

held_out = [row for row in read_manifest(unpack_mini("mini") / "manifest.jsonl") if row.split == "test"]
sounds = {row.label: row.audio for row in held_out if row.audio}
if not PHOTOS.exists():
    PHOTOS.mkdir()
    for row in held_out:
        if row.image and row.label in sounds:
            shutil.copy(row.image, PHOTOS / f"{row.label}.webp")
print(len(list(PHOTOS.iterdir())), "images;", len(sounds), "sounds to ask with")

# %% [markdown]
# ## The index
#
# Rows are written as they are embedded. A second `add` embeds only what is new or changed.

# %%
embedder = plait.Embedder(MODEL)
make = plait.Index.open if Path("photos.lance").exists() else plait.Index.create
index = make("photos.lance", embedder)
print(index.add(PHOTOS).added, "images indexed")

# %% [markdown]
# ## Ask with a sound
#
# Hits hold a score (the cosine of the two vectors), a path and what else is known of the row.

# %%
for hit in index.search({"audio": sounds["drum"]}, k=3):
    print(f"{hit.score:.2f}", Path(hit.path).name)

# %% [markdown]
# A sound and a text at once. `weights` says how much each counts, and `not` moves away from something.

# %%
for hit in index.search({"audio": sounds["bell"], "text": "a bird", "weights": {"audio": 0.7}}, k=3):
    print(f"{hit.score:.2f}", Path(hit.path).name)

# %% [markdown]
# ## How good is it?
#
# With your own photographs you judge by looking. For the drawings it can be counted: how often is the first
# hit the thing that sounds? One sound a thing is asked; guessing would find one in as many as there are
# images.

# %%
answers = index.search_many([{"audio": sound} for sound in sounds.values()], k=1)
right = sum(Path(hits[0].path).stem == label for label, hits in zip(sounds, answers, strict=True))
images = len(list(PHOTOS.iterdir()))
print(f"first hit right: {right} of {len(sounds)}; by guessing {len(sounds) / images:.1f}")

# %% [markdown]
# ## Further
#
# - The same on the command line: `plait search photos.lance --audio bark.wav --text snow --html hits.html`.
# - Nothing is found where nothing is: `--min-score auto`; copies, films, words of names:
#   `docs/search-your-own-photos.md`.
