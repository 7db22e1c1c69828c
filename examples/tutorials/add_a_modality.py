# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Add a modality: depth
#
# A trained ONE-PEACE knows text, images and sounds. Here it learns depth maps as well, and nothing that it
# knew changes by a bit. About a minute on one CPU core.
#
# Install: `pip install '.[media,search,train]'`. As a notebook: `pip install jupytext`, `jupytext --to
# ipynb add_a_modality.py`.

# %%
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import plait
from plait.cli import main
from plait.nn.adapters import Adapted

# %% [markdown]
# ## The modality
#
# A class with four parts. `load` opens a file, `process` makes tensors of several, `forward` makes tokens
# of those: one in front that stands for the whole, and one for each patch. `config.dim` is the width of the
# model.
#
# In a notebook the class may stand here. For `plait ... --plugin FILE`, and for whoever opens the model
# later, it has to stand in a file: a model directory never brings code of its own.

# %%
SIDE, PATCH = 16, 4


@plait.modality("depth", suffixes=(".depth",))
class Depth(nn.Module):
    """Metres (batch, 16, 16) -> [whole ; 4 x 4 patches]."""

    def __init__(self, config) -> None:
        super().__init__()
        self.patches = nn.Linear(PATCH * PATCH, config.dim)
        self.whole = nn.Parameter(torch.randn(1, 1, config.dim) * 0.1)
        self.positions = nn.Parameter(torch.randn(1 + (SIDE // PATCH) ** 2, config.dim) * 0.1)

    @staticmethod
    def load(value) -> Tensor:
        return torch.as_tensor(np.load(value) if isinstance(value, str | Path) else value, dtype=torch.float32)

    @staticmethod
    def process(maps) -> dict[str, Tensor]:
        return {"depth": torch.stack(list(maps)) / 5 - 1}  # metres of a room -> about -1 to 1

    @staticmethod
    def example() -> list[list[float]]:
        return [[1.0] * SIDE] * SIDE

    def forward(self, depth: Tensor) -> Adapted:
        cells = depth.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3).flatten(1, 2)  # (batch, 16, 16)
        x = torch.cat([self.whole.expand(len(depth), -1, -1), self.patches(cells)], dim=1)
        return Adapted(x + self.positions, None)


# %% [markdown]
# ## Rows
#
# A manifest holds depth maps under the name of the modality, beside texts. These are made up: four shapes,
# at any distance and with noise. A quarter is held out.

# %%
down, right = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
SHAPES = {
    "a wall": 0 * down,
    "a ball": -np.sqrt(np.clip(1 - down**2 - right**2, 0, None)),
    "stairs": -np.floor(2 * down) / 2,
    "a corridor": -2 * np.maximum(abs(down), abs(right)),
}
DATA = Path("depth-maps")
DATA.mkdir(exist_ok=True)
drawn = np.random.default_rng(0)
rows = []
for number in range(128):
    name = list(SHAPES)[number % 4]
    metres = drawn.uniform(3, 6) + SHAPES[name] + drawn.normal(0, 0.1, (SIDE, SIDE))
    with (DATA / f"{number}.depth").open("wb") as file:
        np.save(file, metres.astype(np.float32))
    split = "test" if number >= 96 else "train"
    rows.append({"id": str(number), "depth": f"{number}.depth", "text": name, "label": name, "split": split})
(DATA / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

# %% [markdown]
# ## Training
#
# In a terminal: `plait train one_peace.add_modality --plugin depth.py --set name=depth --set
# data=depth-maps ...`. What is new learns to meet the texts: the adapter, a feed-forward network a layer, a
# norm and a projection. All else is frozen.

# %%
settings = {"name": "depth", "data": DATA, "like": "image", "steps": 60, "batch_size": 24}
words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
assert main(["train", "one_peace.add_modality", *words, "--out", "runs/depth"]) == 0

# %% [markdown]
# ## What it learned
#
# Every depth map that was held out chooses among the four names; guessing is right once in four.

# %%
embedder = plait.Embedder("runs/depth/model")
names = embedder.embed(list(SHAPES))
held_out = [row for row in rows if row["split"] == "test"]
maps = embedder.embed([{"depth": DATA / row["depth"]} for row in held_out])
chosen = [list(SHAPES)[best] for best in (maps @ names.T).argmax(1)]
accuracy = np.mean([name == row["text"] for name, row in zip(chosen, held_out, strict=True)])
print(f"{accuracy:.0%} of {len(held_out)} are named rightly")

# %% [markdown]
# And what the model knew is as it was, to the last bit: an index made before goes on answering.

# %%
before = plait.Embedder("nano").embed(list(SHAPES))
assert np.array_equal(before, names)

# %% [markdown]
# ## Search with it
#
# Everything that takes a modality takes this one, alone or fused with others.

# %%
make = plait.Index.open if Path("rooms.lance").exists() else plait.Index.create
index = make("rooms.lance", embedder)
index.add([plait.Sample(row["id"], text=row["text"], meta={"depth": DATA / row["depth"]}) for row in held_out])
for hit in index.search({"text": "stairs"}, k=3, modality="depth"):
    print(f"{hit.score:.2f}", hit.caption)

# %% [markdown]
# ## Further
#
# `docs/add-a-modality.md`: what films and symbolic music reached, training under one percent of the
# weights, teachers.
