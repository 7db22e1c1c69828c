"""Two modalities added to `nano`, animated films and symbolic music, against chance and an encoder from scratch.

python benchmarks/modalities.py DIR [music | films] [seeds]     data and runs lie under DIR; run again, it goes on

films: frames of animated emoji, learned against their names; and two in turn against "A then B". Held out are a quarter
of the emoji: named, ordered, and found among drawings of the same thing, which films were never paired with.
music: 48 notes of one instrument's part in real tunes, without saying which instrument, learned against its name. Held
out are tunes; sounds of the instrument and drawings of it were never paired with music.

`all` trains adapter, networks, norm and projection, `projector` under 1 % of the weights; `scratch` is an encoder of
the same size whose trunk starts from nothing and trains whole, on the same rows against the same frozen vectors.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import plait
from plait.data.manifest import digest, read_manifest, write_manifest
from plait.data.mini import cached_mini
from plait.data.packages import unpacked
from plait.evaluation.emergent import equal, score
from plait.models.auto import load
from plait.recipes.adding import Meeting, Pairs, add_modality
from plait.training.run import run_recipe
from plait.training.stages import Options, Recipe
from plait.types import Sample
from plait_studies.midi import DRUMS, read_parts, write_notes

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS, BATCH, LR = {"midi": 100, "animation": 56}, 24, 2e-3
ARMS = ("all", "projector", "scratch")
PLAYED = {
    "musical-keyboard": range(8), "bell": range(8, 16), "church": range(16, 21), "accordion": range(21, 24),
    "guitar": range(24, 32), "violin": range(40, 52), "trumpet": (56, 57, 58, 59, 61, 62, 63),
    "saxophone": range(64, 68), "flute": range(72, 80), "drum": (DRUMS,),
}  # fmt: skip
"""Thing of the data set `mini` -> General MIDI programs; ensembles of strings and brass count as their first voice."""
NOTES, MOST = 48, 8
"""Notes of an excerpt, and most excerpts of a part."""


def tunes() -> Iterator[tuple[str, bytes]]:
    """Name and content of each different MIDI file of two games' music."""
    seen = set()
    for path in sorted(unpacked("openttd-openmsx").rglob("*.mid")):
        yield path.stem, path.read_bytes()
    for path in sorted(unpacked("freedoom").rglob("*.wad")):
        data = path.read_bytes()
        count, table = struct.unpack("<II", data[4:12])
        for i in range(count):
            start, size, name = struct.unpack("<II8s", data[table + 16 * i : table + 16 * i + 16])
            lump = data[start : start + size]
            if lump[:4] == b"MThd" and lump not in seen:
                seen.add(lump)
                yield f"{path.stem}-{name.rstrip(bytes(1)).decode()}", lump


def build_music(out: Path) -> Path:
    """Excerpts as MIDI files, with a manifest: a quarter of the tunes is held out."""
    out.mkdir(parents=True, exist_ok=True)
    heard = {row.label for row in read_manifest(cached_mini()) if row.audio is not None}
    thing_of = {program: thing for thing, programs in PLAYED.items() for program in programs}
    rows = []
    for tune, data in tunes():
        split = "test" if digest(tune) % 4 == 0 else "train"
        for (channel, program), notes in sorted(read_parts(data).items()):
            thing = thing_of.get(program)
            for k in range(min(MOST, len(notes) // NOTES) if thing in heard else 0):
                part = notes[k * NOTES : (k + 1) * NOTES].copy()
                part[:, 1] -= part[0, 1]
                name = f"{tune}-{channel}-{max(program, 0)}-{k}"
                write_notes(out / f"{name}.mid", part)
                words = str(thing).replace("-", " ")
                where = {"midi": str(out / f"{name}.mid")}
                rows.append(Sample(name, text=words, label=thing, split=split, meta=where))
    both = set.intersection(*({row.label for row in rows if row.split == split} for split in ("train", "test")))
    write_manifest(out / "manifest.jsonl", [row for row in rows if row.label in both])
    return out


def build_films(out: Path) -> Path:
    """Eight frames of each named animation, single and two in turn; a quarter of the names is held out."""
    from plait_studies.build.emoji import concepts, frames_over

    out.mkdir(parents=True, exist_ok=True)
    named = {"-".join(f"{ord(char):x}" for char in c.char): c for c in concepts().values()}
    clips: dict[str, list[tuple[Any, np.ndarray]]] = {"train": [], "test": []}
    for package in ("@lobehub/fluent-emoji-anim-1", "@lobehub/fluent-emoji-anim-3"):
        for path in sorted((unpacked(package) / "package" / "assets").glob("*.webp")):
            concept = named.get(path.stem.replace("-fe0f", ""))
            if concept is not None and (frames := frames_over(path, 64, 8)) is not None:
                clips["test" if digest(concept.slug) % 4 == 0 else "train"].append((concept, frames))
    rows = []
    for split, found in clips.items():
        for concept, frames in found:
            rows.append(film(out, concept.slug, frames, concept.name, split))
        rng = np.random.default_rng(0)
        for _ in range(200 if split == "train" else 60):
            (a, first), (b, second) = (found[i] for i in rng.choice(len(found), 2, replace=False))
            for one, two, x, y in ((a, b, first, second), (b, a, second, first)):
                both = np.concatenate([x[::2], y[::2]])
                rows.append(film(out, f"{one.slug}--{two.slug}", both, f"{one.name} then {two.name}", split))
    write_manifest(out / "manifest.jsonl", list({row.id: row for row in rows}.values()))
    return out


def film(out: Path, slug: str, frames: np.ndarray, text: str, split: str) -> Sample:
    """Frames as a file, and their row."""
    np.save(out / f"{slug}.npy", frames)
    return Sample(slug, text=text, label=slug, split=split, meta={"animation": str(out / f"{slug}.npy")})


class Turns:
    """An order of rows: half of a batch single films, half pairs in both orders, so that time tells them apart."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        ids = {row.id: i for i, row in enumerate(samples)}
        self.single = [i for name, i in ids.items() if "--" not in name]
        self.pairs = [(i, ids["--".join(reversed(name.split("--")))]) for name, i in ids.items() if "--" in name]
        self.count = len(samples)

    def __len__(self) -> int:
        return self.count

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Row numbers of a step."""
        rng = np.random.default_rng((seed, step))
        chosen = rng.choice(len(self.pairs), batch_size // 4, replace=False)
        single = rng.choice(self.single, batch_size // 2, replace=False)
        return [*map(int, single), *(i for k in chosen for i in self.pairs[k])]


def recipe(arm: str, name: str, data: Path) -> Recipe:
    """What one arm trains."""
    settings = {"data": str(data), "steps": STEPS[name], "batch_size": BATCH}
    like = "audio" if name == "midi" else "image"
    kind = "projector" if arm == "projector" else "all"
    made = add_modality(name, like=like, train=kind, lr=LR, **settings)
    stage = made.stages[0]
    source = stage.batches()
    assert isinstance(source, Pairs)
    if name == "animation":
        source.order = Turns(source.samples)
    stage = replace(stage, batches=lambda: source)
    if arm != "scratch":
        return replace(made, stages=[stage])

    def fresh() -> Any:
        from plait.models.one_peace import OnePeaceConfig, OnePeaceModel

        frozen = source.tower.model
        own = OnePeaceModel(OnePeaceConfig.preset("nano", modalities=[name], decoder=None, joint=[]))
        own.logit_scale.data.copy_(frozen.logit_scale)
        return own

    objective = Meeting(name, source.to, source.tower)
    whole = (r"re:^(?!logit_scale)",)
    return replace(made, model_builder=fresh, stages=[replace(stage, objective=objective, trainable=whole)])


def measured(name: str, data: Path, own: Any, nano: plait.Embedder) -> dict[str, dict[str, float]]:
    """Scores of held-out items. own: embeds the new modality; nano: everything else, as before."""
    rows = [row for row in read_manifest(data) if row.split == "test"]
    mini = read_manifest(cached_mini())
    drawings = [row for row in mini if row.image is not None and row.split == "test"]
    drawn = nano.embed([{"image": row.image} for row in drawings])
    drawn_labels = [row.label for row in drawings]
    found = {}

    def add(title: str, items: list[Sample], gallery: np.ndarray, targets: np.ndarray, *ks: int) -> None:
        queries = own([item.meta[name] for item in items])
        for k in ks:
            one = score(queries, gallery, targets, k, [str(item.label) for item in items])
            found[f"{title} R@{k}"] = {"value": 100 * one.value, "chance": 100 * one.chance}

    if name == "midi":
        things = sorted({str(row.label) for row in rows})
        labels = [str(row.label) for row in rows]
        notes = [row for row in mini if row.audio is not None and row.split == "test" and row.label in things]
        seen = [i for i, label in enumerate(drawn_labels) if label in things]
        heard = nano.embed([{"audio": row.audio} for row in notes])
        add("music > sound (never paired)", rows, heard, equal(labels, [row.label for row in notes]), 1)
        words = nano.embed([thing.replace("-", " ") for thing in things])
        add("music > name", rows, words, equal(labels, things), 1)
        add("music > drawing (never paired)", rows, drawn[seen], equal(labels, [drawn_labels[i] for i in seen]), 1)
        return found
    single = [row for row in rows if "--" not in row.id]
    names = nano.embed([row.text for row in single])
    add("film > name", single, names, equal([r.id for r in single], [r.id for r in single]), 1, 5)
    known = [row for row in single if row.label in drawn_labels]
    add("film > drawing (never paired)", known, drawn, equal([r.id for r in known], drawn_labels), 1, 5)
    pairs = [row for row in rows if "--" in row.id]
    films, said = own([row.meta[name] for row in pairs]), nano.embed([row.text for row in pairs])
    place = {row.id: i for i, row in enumerate(pairs)}
    other = said[[place["--".join(reversed(row.id.split("--")))] for row in pairs]]
    right = (films * said).sum(1) > (films * other).sum(1)
    found["which came first, of two"] = {"value": 100 * float(right.mean()), "chance": 50.0}
    return found


def embedded(embedder: plait.Embedder, name: str, values: Sequence[Any]) -> np.ndarray:
    """Vectors of values of the new modality."""
    return embedder.embed([{name: value} for value in values])


def frames_of(clips: Sequence[str], nano: plait.Embedder) -> np.ndarray:
    """What `nano` makes of a film without the new modality: the mean of its frames' vectors."""
    from PIL import Image

    from plait.evaluation.emergent import fuse

    chosen = [np.load(clip)[[0, 2, 5, 7]] for clip in clips]
    return fuse(*(nano.embed([Image.fromarray(frames[k]) for frames in chosen]) for k in range(4)))


def main(place: Path, names: Sequence[str], seeds: int) -> None:
    from measure import write

    nano = plait.Embedder("nano")
    results: dict[str, Any] = {}
    for title in names:
        name = {"music": "midi", "films": "animation"}[title]
        plait.use(EXAMPLES / f"{name}_modality.py")
        data = place / title
        if not (data / "manifest.jsonl").is_file():
            (build_music if title == "music" else build_films)(data)
        splits = [row.split for row in read_manifest(data)]
        one: dict[str, Any] = {"rows": {split: splits.count(split) for split in ("train", "test")}, "arms": {}}
        if title == "films":
            one["arms"]["mean of frames"] = {"": measured(name, data, lambda clips: frames_of(clips, nano), nano)}
        for arm in ARMS:
            of_seeds: dict[str, Any] = {}
            for seed in range(seeds):
                out = place / f"{title}-{arm}-{seed}"
                build = partial(recipe, arm, name, data)
                run_recipe(build, out, seed=seed, options=Options(progress=False))
                own = partial(embedded, plait.Embedder(load(out / "model")), name)
                of_seeds[str(seed)] = measured(name, data, own, nano)
                card = json.loads((out / "model" / "training.json").read_text())
                one.setdefault("weights trained", {})[arm] = [card["trained"], card["parameters"]]
                (place / f"{title}-{arm}-{seed}.json").write_text(json.dumps(of_seeds[str(seed)], indent=1))
            one["arms"][arm] = of_seeds
        results[title] = one
        results[title]["mean over seeds"] = {
            arm: {
                metric: {
                    "value": round(float(np.mean([s[metric]["value"] for s in found.values()])), 1),
                    "least": round(min(s[metric]["value"] for s in found.values()), 1),
                    "most": round(max(s[metric]["value"] for s in found.values()), 1),
                    "chance": round(next(iter(found.values()))[metric]["chance"], 2),
                }
                for metric in next(iter(found.values()))
            }
            for arm, found in one["arms"].items()
        }
        write(f"modalities_{title}", {"steps": STEPS[name], "batch": BATCH, "seeds": seeds, **results[title]})


if __name__ == "__main__":
    asked = [one for one in sys.argv[2:] if one in ("music", "films")] or ["music", "films"]
    main(Path(sys.argv[1]), asked, next((int(one) for one in sys.argv[2:] if one.isdigit()), 3))
