"""One evaluation: DIR -> items -> media checked -> predictions.jsonl -> scores -> result.json and result.html.

Predictions are complete on disk before anything is scored, so that `score_file` gives the same result without the
model. The directory of a run holds cache.jsonl (every answer), predictions.jsonl, result.json, result.html and, for
benchmarks scored by a server, submission.json.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.errors import UsageError
from plait.evaluation.base import Item, Method, Scoring, Task, score
from plait.evaluation.cache import ResponseCache, key_of
from plait.evaluation.files import MediaFiles, read_results, read_rows, unique
from plait.evaluation.result import PAGE, PREDICTIONS, RESULT, Loaded, build_result, write_result_page
from plait.evaluation.tasks import read
from plait.places import atomic_write
from plait.processing.videos import chooser
from plait.types import Decoding, Modality

CACHE = "cache.jsonl"
SHOWN = 8
"""Missing media that an error names."""


@dataclass(frozen=True)
class Options:
    """How a task is run.

    Attributes:
        split: another than the task's own.
        limit: only so many first items.
        rule: a variant of the metric.
        batch_size: questions per forward pass.
        template: how the user's media files are called, see `plait.evaluation.files.MediaFiles`.
        skip_missing: items without media count as wrong instead of stopping the run.
        judge: stored replies or a model.
        show_progress: None shows a bar when the work takes longer than about two seconds.
        decoding, num_frames: instead of those of the model's family.
        multi_scale: segmenters look at several scales and mirrored images, as published.
        frames: how frames of videos are chosen: `published` as the model's family does, or a name that
            `plait.processing.videos.chooser` knows.
        rerank: the best of a retrieval that the match head scores anew, 0 for none; None as the model's family does.
        answers: a list of answers to choose from (JSON or a line each); None for the one in the data set, if any.
        dtype: in which the model was opened, None for its usual one: part of the cache's name and of the result.
    """

    split: str | None = None
    limit: int | None = None
    rule: str | None = None
    batch_size: int = 8
    template: str | None = None
    skip_missing: bool = False
    judge: str | None = None
    show_progress: bool | None = None
    decoding: Decoding | None = None
    num_frames: int | None = None
    frames: str = "published"
    rerank: int | None = None
    answers: Path | None = None
    dtype: str | None = None
    multi_scale: bool = False


def load_items(task: Task, data: str | Path, options: Options) -> Loaded:
    """Read the annotation files of a task.

    Args:
        task: gives layouts and split.
        data: directory of the data set.
        options: split, limit and template.

    Raises:
        ValueError: where files are absent or malformed, nothing is left, or the limit is below 1.
    """
    split = options.split or task.split
    items, _, layout = read(data, task.layouts, split)
    if task.media == ("image",):
        # ScienceQA has questions without a picture: they are no part of the score
        items = [item for item in items if item.pictures]
    if not items:
        raise ValueError(f"expected items in split {split!r} of {task.name} in {data}, got none; pass --split")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"expected --limit of at least 1, got {options.limit}")
    return Loaded(items[: options.limit], MediaFiles(data, options.template), split, layout, len(items))


def prepare(task: Task, data: str | Path, options: Options) -> Loaded:
    """Items of a task whose media are there. Needs no model: call it before one is opened.

    Args:
        task, data, options: as in `load_items`.

    Raises:
        UsageError: for a rule that the task does not have.
        ValueError: where annotation files are absent or malformed, and one that lists missing media.
    """
    check_rule(task, options.rule)
    if options.frames != "published":
        if "video" not in task.media:
            raise UsageError(f"expected no --frames beside {task.name}, which has no films, got {options.frames}")
        # a rule that nobody knows is told before a model is read
        chooser(options.frames, options.num_frames or 1)
    loaded = load_items(task, data, options)
    missing = sorted(missing_media(loaded.items, loaded.files, task.seen))
    if missing and not options.skip_missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(
            f"expected the media of every item below {loaded.files.root}, got none for {len(missing)}: "
            f"{', '.join(missing[:SHOWN])}{more}; "
            "add them, name them with --media, or count them as wrong with --skip-missing"
        )
    return loaded


def missing_media(items: Iterable[Item], files: MediaFiles, modalities: Sequence[Modality]) -> dict[str, None]:
    """Names without a file, in order and each once.

    Args:
        items, files: of the data set.
        modalities: those that the task looks at.

    Returns:
        Name -> None, a set that keeps its order.
    """
    named = ((name, modality) for item in items for modality, name in item.media(modalities))
    return {str(name): None for name, modality in named if files.find(name, modality) is None}


def method_of(task: Task, model: Any) -> Method:
    """How this model predicts for this task: the first of the task's methods that the model is capable of.

    Raises:
        ValueError: where it is capable of none.
    """
    for capability, method in task.methods.items():
        if capability in model.capabilities:
            return method
    raise ValueError(
        f"expected a model that can {' or '.join(task.methods)} for {task.name}, got {model.name}, "
        f"which can {', '.join(model.capabilities)}"
    )


def used_by(task: Task, model: Any, options: Options, answers: Sequence[str] = ()) -> dict[str, Any]:
    """What the run asks with: the kind of question, decoding and frames, as the family has them unless told otherwise.

    Args:
        task, model, options: decide together. answers: of `answers_for`.

    Returns:
        method, and where the method asks words: kind, decoding and num_frames. It is part of the cache's name
            and of the
        result, so that answers of other settings are never mixed.
    """
    method = method_of(task, model)
    used: dict[str, Any] = {"method": method} | ({} if options.dtype is None else {"dtype": options.dtype})
    if method == "retrieve":
        used |= _rescoring(model, options.rerank)
    elif options.rerank is not None:
        raise UsageError(f"expected no --rerank for {task.name}, got {options.rerank}; it belongs to retrieval")
    # an embedder opens films itself
    opens = method not in ("retrieve", "zero_shot") or "rerank" in used
    if options.multi_scale:
        if method != "segment":
            raise UsageError(f"expected a task of segmentation for --multi-scale, got {task.name}; leave it out")
        used["multi_scale"] = True
    if "video" in task.media and opens:
        used["num_frames"] = options.num_frames or model.asking.num_frames
        used["frames"] = model.asking.frames if options.frames == "published" else options.frames
        # a rule that nobody knows is refused before anything is asked
        chooser(used["frames"], used["num_frames"])
    # a grounding head takes the phrase itself, without the words of a question
    if method not in ("prompt", "locate", "rank_choices") or (method == "locate" and "ground" in model.capabilities):
        return used
    medium = "video" if "video" in task.media and "image" not in task.media else task.media[0]
    used["kind"] = task.kind
    if answers:
        return used | {"method": "rank_answers", "answers": len(answers), "answer_list": key_of(*answers)[:12]}
    if method != "rank_choices":
        used["decoding"] = asdict(options.decoding or model.asking.decoding(task.kind, medium))
    return used


def _rescoring(model: Any, k: int | None) -> dict[str, int]:
    """How many of a retrieval the match head scores, nothing for none. ValueError where k is asked of no such head."""
    # models of users embed and say no more
    published = getattr(getattr(model, "asking", None), "rerank", 0)
    if k is not None and (k < 0 or (k and not published)):
        got = f"{model.name}, which has none" if k > 0 else str(k)
        raise ValueError(f"expected --rerank of 0 or more, of a model with a match head, got {got}; leave --rerank out")
    count = published if k is None else k
    return {"rerank": count} if count else {}


def answers_for(task: Task, model: Any, root: Path, options: Options) -> list[str]:
    """The list that answers are chosen from: the one asked for, or of the data set for a family that ranks; or none.

    Args:
        task, model, options: decide together. root: of the data set.

    Raises:
        ValueError: for a list of a task or family that chooses from none, and for an empty one.
    """
    can_rank = bool(getattr(getattr(model, "asking", None), "ranked", 0)) and task.kind == "short"
    if options.answers is not None and not can_rank:
        raise ValueError(
            f"expected no list of answers for {task.name} with {model.name}, got {options.answers}; "
            "short answers of families that rank are chosen from one"
        )
    beside = None if task.answers is None or not can_rank else next(iter(sorted(root.rglob(task.answers))), None)
    path = options.answers or beside
    return [] if path is None else read_answers(path)


def read_answers(path: Path) -> list[str]:
    """Different answers of a file, a JSON list of texts or one a line, in its order. ValueError where it has none."""
    if not path.is_file():
        raise ValueError(f"expected a file of answers, got {path}: no such file")
    held: Any = (
        json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".json"
        else path.read_text(encoding="utf-8").splitlines()
    )
    found = list(dict.fromkeys(text.strip() for text in held if isinstance(text, str) and text.strip()))
    if not found or not isinstance(held, list):
        raise ValueError(f"expected a list of answers in {path}, got none; the release's is a JSON list of texts")
    return found


def predict(task: Task, model: Any, loaded: Loaded, options: Options, out: Path | None) -> list[dict[str, Any]]:
    """Make predictions, answer by answer through the cache of `out`, and write them to predictions.jsonl.

    Args:
        task, model: who is asked what.
        loaded: from `prepare`.
        options: batches, decoding and frames.
        out: directory of the run; None keeps everything in memory.

    Returns:
        Rows with id, prediction, raw and prompt; failed says why there is no prediction.
    """
    from plait.evaluation.predict import METHODS, Setting

    # part of the cache's first line: answers under other settings are refused there
    answers = answers_for(task, model, Path(loaded.files.root), options)
    used = used_by(task, model, options, answers)
    missing = missing_media(loaded.items, loaded.files, task.seen)
    # absent media are no question to the model, but a wrong answer of the score
    present, absent = [], []
    for item in loaded.items:
        (absent if any(str(name) in missing for _, name in item.media(task.seen)) else present).append(item)
    about = {"model": model.name, "fingerprint": model.fingerprint, "task": task.name, **used}
    with ResponseCache(None if out is None else out / CACHE, about) as cache:
        decoding, count, rule = (
            Decoding(**used.get("decoding", {})),
            used.get("num_frames", 0),
            used.get("frames", "time"),
        )
        asked = (decoding, count, rule, options.batch_size, options.show_progress, _within(present, used, options))
        setting = Setting(task, model, loaded.files, cache, *asked, answers, options.multi_scale)
        rows = METHODS[used["method"]](present, setting) if present else []
    rows += [
        {"id": item.id, "prediction": None, "raw": None, "prompt": "", "failed": "media missing"} for item in absent
    ]
    if out is not None:
        atomic_write(out / PREDICTIONS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def _within(items: Sequence[Item], used: Mapping[str, Any], options: Options) -> int:
    """How many of each query are scored anew. ValueError where more were asked for than there are to be found."""
    k, gallery = used.get("rerank", 0), max(len(items), sum(len(item.captions or []) for item in items))
    if options.rerank is not None and k > gallery:
        raise ValueError(f"expected --rerank of at most the gallery's {gallery}, got {k}; lower it")
    return k


def evaluate(
    task: Task, model: Any, data: str | Path | Loaded, out: Path | None, options: Options | None = None
) -> dict[str, Any]:
    """Run a task with an open model: predictions, scores, and what the directory of a run holds.

    Args:
        task: one of `plait.evaluation.tasks`.
        model: from `plait.evaluation.models.open_model`.
        data: the directory of the data set, or what `prepare` made of it.
        out: directory of the run; None writes nothing.
        options: how it is run.

    Returns:
        The result that result.json holds, see `plait.evaluation.result.build_result`.

    Raises:
        ValueError: for data that are absent or malformed, a model that cannot do this, and scores that are not finite.

    Example:
        >>> task = task_named("mini_pictures")
        >>> result = evaluate(task, open_model("nano", task.methods), "data", Path("runs/eval"))
        >>> result["primary"], result["score"], result["interval"]
    """
    options = options or Options()
    started = time.perf_counter()
    loaded = data if isinstance(data, Loaded) else prepare(task, data, options)
    # all predictions are on disk before anything is scored: a rule that fails loses no answer
    rows = predict(task, model, loaded, options, out)
    about = {"name": model.name, "family": model.family, "fingerprint": model.fingerprint}
    used = used_by(task, model, options, answers_for(task, model, Path(loaded.files.root), options))
    return _finish(task, loaded, rows, about | used, options, out, time.perf_counter() - started)


def score_file(
    task: Task, predictions: Path, data: str | Path, out: Path | None, options: Options | None = None
) -> dict[str, Any]:
    """Score predictions.jsonl, or a submission file, without the model.

    Args:
        task, data, out, options: as in `evaluate`.
        predictions: the file; a result.json beside it says who predicted.

    Returns:
        As `evaluate`.

    Raises:
        ValueError: for ids that come twice, that are not in the data, or that have no prediction.
    """
    options = options or Options()
    check_rule(task, options.rule)
    loaded = load_items(task, data, options)
    found = read_rows(predictions)
    if found and "id" in found[0] and "prediction" in found[0]:
        unique(predictions.name, (row.text("id") for row in found))
        rows = [dict(row) for row in found]
    else:
        rows = [{"id": i, "prediction": said, "raw": said, "prompt": ""} for i, said in read_results(predictions)]
    # a submission file does not say whose it is; the result of its run does
    beside = predictions.parent / RESULT
    stored = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    about = stored.get("model", {"name": predictions.stem, "method": "stored predictions"})
    return _finish(task, loaded, rows, about, options, out, 0.0)


def _command(task: Task, loaded: Loaded, model: str, options: Options) -> str:
    """The line that measures the same again, with what was not left as it is."""
    told = {
        "split": options.split, "limit": options.limit, "rule": options.rule, "media": options.template,
        "judge": options.judge, "rerank": options.rerank, "answers": options.answers, "dtype": options.dtype,
        "frames": None if options.frames == "published" else options.frames,
    }  # fmt: skip
    words = ["plait", "eval", task.name, model, "--data", str(loaded.files.root)]
    words += [word for name, value in told.items() if value is not None for word in (f"--{name}", str(value))]
    flags = {"--skip-missing": options.skip_missing, "--multi-scale": options.multi_scale}
    return shlex.join([*words, *(name for name, is_given in flags.items() if is_given)])


def check_rule(task: Task, rule: str | None) -> None:
    """Make sure that a task has a rule.

    Args:
        task: gives its rules.
        rule: None is the first of them, or none.

    Raises:
        UsageError: for another.
    """
    if rule is not None and rule not in task.rules:
        have = f"one of {', '.join(task.rules)}" if task.rules else "no --rule"
        raise UsageError(f"expected {have} for {task.name}, got {rule!r}")


def _finish(
    task: Task,
    loaded: Loaded,
    rows: list[dict[str, Any]],
    model: Mapping[str, Any],
    options: Options,
    out: Path | None,
    seconds: float,
) -> dict[str, Any]:
    """Score the rows and write what a run leaves behind: result.json, result.html and a submission."""
    rule = options.rule or (task.rules[0] if task.rules else None)
    scored = score(task, Scoring(loaded.items, rows, rule, options.judge, loaded.files, out))
    result = build_result(task, loaded, rows, scored, model, rule, options.limit, seconds)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        # written even where there is a score: a server's verdict is the published one
        if task.submission is not None:
            replies = {row["id"]: row.get("prediction") or "" for row in rows}
            pairs = [(item, replies.get(item.id, "")) for item in loaded.items]
            result["submission"] = task.submission(pairs, out, model["name"]).name
        atomic_write(out / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        command = _command(task, loaded, result["model"]["name"], options)
        write_result_page(out / PAGE, result, rows, loaded.items, command)
    return result
