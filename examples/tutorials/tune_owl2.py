# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Tune Owl2 on your own conversations, and chat with it
#
# From talks about images to a model that answers like them. Here everything is tiny, so that it runs
# anywhere in a minute: a language model of random weights that reads letters, and squares of one colour.
# With a real model only `BASE` and the settings at `plait train` change.
#
# Install: `pip install '.[media,train,chat]'`. As a notebook: `pip install jupytext`, `jupytext --to ipynb
# tune_owl2.py`.

# %%
import json
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import plait
from plait.cli import main

# %% [markdown]
# ## A model
#
# `plait upcycle LLAMA OWL2` gives any Llama, Mistral or Qwen2 eyes, and a way of its own for images in
# every layer. With a published Owl2 this step falls away: name its directory in `BASE`.
#
# The stand-in for a language model has two layers and a token for every byte.

# %%
BASE = "owl2"

if not Path(BASE).exists():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(vocab_size=260, **sizes, **ends)).save_pretrained("llama")
    letters = {letter: i + 2 for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, **letters}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=bytewise, **marks).save_pretrained("llama")
    assert main(["upcycle", "llama", BASE, "--small-vision", "--image-size", "32", "--queries", "4"]) == 0

# %% [markdown]
# ## Conversations
#
# One JSON object a line: `messages`, and the `image` that `<image>` stands for. Rows of split `test` are
# measured before and after, and never trained on. LLaVA's files come in by `plait data from-folder
# llava.json chat --media images`.

# %%
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
DATA = Path("talks")
DATA.mkdir(exist_ok=True)
rows = []
for number in range(24):
    name = list(COLOURS)[number % 3]
    Image.new("RGB", (32, 32), tuple(part + number - 12 for part in COLOURS[name])).save(DATA / f"{number}.png")
    talk = [
        {"role": "user", "content": "<image>What colour is it?"},
        {"role": "assistant", "content": name},
    ]
    split = "test" if number >= 18 else "train"
    rows.append({"id": str(number), "image": f"{number}.png", "messages": talk, "split": split})
(DATA / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
assert main(["data", "check", str(DATA), BASE]) == 0  # whether every file opens, and what would not fit the model

# %% [markdown]
# ## Training
#
# In a terminal: `plait train finetune --set model=owl2 --set data=talks --set task=chat ...`. The random
# stand-in has to learn everything, so all weights train. For a model that can talk take `lora=16` in place
# of `lr=3e-3`, and see `plait plan finetune ...` first for the memory.
#
# What is printed are bits per byte of the answers held out; less is better.

# %%
settings = {"model": BASE, "data": DATA, "task": "chat", "steps": 90, "batch_size": 6, "lr": 3e-3}
words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
assert main(["train", "finetune", *words, "--out", "runs/talks"]) == 0

worth = json.loads(Path("runs/talks/finetune.json").read_text())
print("bits per byte:", {name: round(worth[name]["value"], 2) for name in ("trivial", "before", "after")})

# %% [markdown]
# ## Chat
#
# A `Chat` remembers what was said and shown. `plait chat runs/talks/model --image 20.png` does the same in
# a terminal.

# %%
said = {}
for number in (18, 19, 20):  # held out
    chat = plait.Chat("runs/talks/model", max_new_tokens=8)
    said[rows[number]["messages"][1]["content"]] = chat.ask("What colour is it?", images=[DATA / f"{number}.png"])
print(said)

# %% [markdown]
# ## Further
#
# - `runs/talks/model` is an ordinary model directory: `plait answer`, `plait serve` and
#   `AutoModelForImageTextToText` take it.
# - With `lora=RANK`, `runs/talks/adapter` holds the adapter alone: `plait chat owl2 --adapter
#   runs/talks/adapter`.
# - All settings: `docs/finetune.md`; the published stages: `docs/owl2.md`.
