"""Run a recipe in its directory: settings as text -> typed arguments -> claimed directory -> trained model.

`--set key=value` -> `parse_settings` -> `claim_run_dir` (config.json) -> `run_recipe` -> RUN/model
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import plait
from plait.errors import UsageError
from plait.places import at_work, atomic_directory, atomic_write, check_free
from plait.reading import read_json

if TYPE_CHECKING:
    from plait.training.checkpoint import CheckpointStore
    from plait.training.loop import TrainResult
    from plait.training.stages import Options, Recipe


OLDER = ".model-is-older"
"""In a run directory while it trains again: its model is that of the run before."""

_KINDS = {int: ("a whole number", "100"), float: ("a number", "0.1"), bool: ("true or false", "true")}
"""Type of a parameter -> what it takes, in words, and an example."""


def run_recipe(
    build: Callable[[], Recipe],
    run_dir: Path,
    *,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "float32",
    resume: bool = True,
    options: Options | None = None,
) -> TrainResult:
    """Build a recipe, train it and save `run_dir`/model, or reuse what is there; what `plait train` runs.

    Args:
        build: () -> Recipe, so that a finished run costs neither data nor weights. The model is built with
            every random generator seeded.
        run_dir: where metrics.jsonl, checkpoints/ and model/ go: new, empty or Plait's, and of one command at a time.
        seed, device, dtype, resume, options: as in `plait.training.loop.train`.

    Returns:
        `TrainResult`; where a signal stopped it (`interrupted`) there is no model directory.

    Raises:
        ValueError: for batches that processes do not divide, for a `run_dir` that not all of them see, and as `train`.
            UsageError: where `run_dir`/model is there and no run made it, and where `run_dir` holds anything else or
            another process trains in it.
    """
    with at_work(run_dir, is_known=_is_run(run_dir)) if is_main() else nullcontext(), _given_back(run_dir):
        return _run(build, run_dir, seed, device, dtype, resume, options)


def _run(
    build: Callable[[], Recipe],
    run_dir: Path,
    seed: int,
    device: str | None,
    dtype: str,
    resume: bool,
    options: Options | None,
) -> TrainResult:
    """As `run_recipe`, for who holds the directory."""
    from plait.training.checkpoint import CheckpointStore
    from plait.training.data_order import check_divides
    from plait.training.loop import seed_everything, train
    from plait.training.parallel import check_shared, gathered_state, hollow, process_group, shapes_of

    model_dir = run_dir / "model"
    store = CheckpointStore(run_dir / "checkpoints")
    if (finished := _finished(run_dir, store, resume)) is not None:
        return finished
    with process_group(device) as (world, place):
        recipe = build()
        for stage in recipe.stages:
            check_divides(stage.batch_size, world.size, stage.accumulation)
        check_shared(run_dir, world)
        if world.is_main and model_dir.exists():
            # the model of the run that resume=False replaces stays until the new one stands
            (run_dir / OLDER).touch()
        # b"model" gives five numbers of the key, so these draws are no step's
        seed_everything(seed, *b"model")
        is_sharded = options is not None and options.parallel == "fsdp" and world.size > 1
        # process 0 alone holds the weights: they need not fit into memory once per process
        model = shapes_of(recipe.model_builder) if is_sharded and not world.is_main else recipe.model_builder()
        if recipe.before is not None and world.is_main:
            recipe.before(model, run_dir)
        world.wait()
        # taken before training, since sharding changes the model in place
        whole = hollow(model) if is_sharded and world.is_main else model
        result = train(
            model, recipe.stages, run_dir, seed=seed, device=device, dtype=dtype, resume=resume, options=options
        )
        if result.interrupted is None:
            state = gathered_state(model, world) if is_sharded else {}
            if world.is_main:
                trained = whole
                if state:
                    # what training spread over processes, together again in a copy that has shapes alone
                    trained.load_state_dict(state, assign=True)
                    trained.to(place)
                if recipe.after is not None:
                    trained = recipe.after(trained, run_dir)
                with atomic_directory(model_dir, replace=True) as directory:
                    recipe.save(trained, directory)
                (run_dir / OLDER).unlink(missing_ok=True)
        world.wait()
    return result


def _finished(run_dir: Path, store: CheckpointStore, resume: bool) -> TrainResult | None:
    """The result of a run whose model is there, None where one is to be trained.

    A model appears whole, at the very end: with its checkpoints cleaned up it is finished still, but not while another
    is trained in its place (`OLDER`). Raises UsageError
    where nothing was trained beside it, since then it is somebody's, who would lose it to this run's.
    """
    from plait.training.logging import read_metrics
    from plait.training.loop import TrainResult

    model_dir, metrics = run_dir / "model", run_dir / "metrics.jsonl"
    newest = store.latest() if resume else None
    if not model_dir.exists() or (run_dir / OLDER).exists():
        return None
    if newest is not None:
        return TrainResult(newest, store.position(newest).seconds)
    if not metrics.is_file():
        raise UsageError(f"expected no {model_dir} before training, got one of no run here; choose another --out")
    rows = read_metrics(metrics)
    return TrainResult(rows[-1]["step"] if rows else 0, 0.0) if resume else None


def parse_settings(function: Callable[..., Any], settings: Sequence[str], seed: int) -> dict[str, Any]:
    """All arguments of a recipe, defaults included, read by the types of its parameters.

    Args:
        function: the recipe.
        settings: `key=value` strings; a list of values is written with commas between.
        seed: what the recipe's own `seed` gets, where it has one.

    Returns:
        Name -> value, in the order of the parameters.

    Raises:
        UsageError: for an unknown key (naming the nearest), a value of another type, or a parameter without default
            that was not set.

    Example:
        >>> def recipe(data: str, steps: int = 100, seed: int = 0): ...
        >>> parse_settings(recipe, ["data=shards", "steps=5"], seed=3)
        {'data': 'shards', 'steps': 5, 'seed': 3}
    """
    known = settings_of(function)
    given: dict[str, Any] = {"seed": seed} if "seed" in known else {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"expected --set key=value, got {setting!r}")
        if key == "seed":
            raise UsageError("expected the seed in --seed, got --set seed; use --seed")
        if key not in known:
            raise UsageError(f"expected a parameter of the recipe, got {key!r}; {nearest(key, list(known))}")
        given[key] = _parse(key, text, *known[key])
    missing = [name for name, (_, default) in known.items() if default is inspect.Parameter.empty and name not in given]
    if missing:
        raise UsageError(f"expected a value for {', '.join(missing)}, got none; add --set {missing[0]}=VALUE")
    return {name: given.get(name, default) for name, (_, default) in known.items()}


def call_recipe(function: Callable[..., Recipe], arguments: dict[str, Any]) -> Recipe:
    """The recipe of a function with the arguments of `parse_settings`; those of a dataclass come to it as one."""
    given, hints = dict(arguments), get_type_hints(function)
    for name in inspect.signature(function).parameters:
        if is_dataclass(kind := hints.get(name)):
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
    return function(**given)


def settings_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (type, default) of what can be set: parameters, and the fields of those that are dataclasses.

    What many recipes share is such a dataclass (`plait.data.reader.Reading`), whose default has their defaults.
    """
    hints, found = get_type_hints(function), {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints.get(name, str)
        if is_dataclass(kind):
            own = get_type_hints(kind)
            found |= {f.name: (own[f.name], getattr(parameter.default, f.name)) for f in fields(kind)}
        else:
            found[name] = (kind, parameter.default)
    return found


def check_run_dir(run_dir: Path, config: dict[str, Any], resume: bool) -> None:
    """Make sure that a run may go on, or begin, in a directory.

    A run directory made before there were markers is known by its config.json.

    Args:
        run_dir: may be absent.
        config: the settings of this run.
        resume: False takes a run of other settings over, and nothing else.

    Raises:
        UsageError: where the directory is no run's, or of one with other settings.
    """
    for value in config.get("arguments", {}).values():
        _check_outside(run_dir, value)
    path = run_dir / "config.json"
    if not _is_run(run_dir):
        check_free(run_dir)
    if not (path.exists() and resume):
        return
    found = read_json(path)
    # "arguments" was spread over the rest, and "plait" is the version that began: another one may go on
    before, now = ({**one, **one.get("arguments", {})} for one in (found, _plain(config)))
    for key in before | now:
        if key not in ("arguments", "plait") and before.get(key) != now.get(key):
            raise UsageError(
                f"expected the settings of {path}, got another {key} ({before.get(key)!r}, now {now.get(key)!r}); "
                "choose another --out, or --no-resume to start again"
            )


def claim_run_dir(run_dir: Path, config: dict[str, Any], resume: bool) -> None:
    """Write config.json, or check that the one there asks for the same run.

    Args:
        run_dir, config: as in `check_run_dir`.
        resume: False takes the directory over; the loop then removes its checkpoints and metrics.

    Raises:
        UsageError: as `check_run_dir`.
    """
    check_run_dir(run_dir, config, resume)
    path = run_dir / "config.json"
    if not is_main() or (path.exists() and resume):
        return
    atomic_write(path, json.dumps({**_plain(config), "plait": plait.__version__}, indent=2) + "\n")


def _is_run(run_dir: Path) -> bool:
    """Whether a config.json says that a recipe was run in the directory, which may be older than markers are."""
    path = run_dir / "config.json"
    return path.is_file() and {"recipe", "plait"} <= set(read_json(path))


def _check_outside(run_dir: Path, value: Any) -> None:
    """Raise UsageError where a setting names something in the directory that is written: it would be replaced."""
    values = value if isinstance(value, list | tuple) else [value]
    for one in values:
        # a word such as "cpu" is a path too, and leads nowhere
        if isinstance(one, str | Path) and str(one) and os.path.exists(one):
            read, written = Path(one).resolve(), run_dir.resolve()
            if read == written or written in read.parents:
                raise UsageError(f"expected an --out that holds nothing that is read, got {run_dir} with {one} in it")


@contextmanager
def _given_back(run_dir: Path) -> Generator[None]:
    """Leave no settings of a run that failed before its first step: the corrected command may have the place."""
    is_new = not (run_dir / "config.json").exists()
    try:
        yield
    except BaseException:
        # from the first line of metrics on there is something to keep
        metrics = run_dir / "metrics.jsonl"
        if is_new and is_main() and not (metrics.exists() and metrics.stat().st_size):
            for name in ("config.json", "metrics.jsonl", "finetune.json"):
                (run_dir / name).unlink(missing_ok=True)
        raise


def _plain(config: dict[str, Any]) -> Any:
    """The configuration as JSON gives it back."""
    # tuples become lists and paths text, so that equal settings compare as equal
    return json.loads(json.dumps(config, default=str))


def _parse(key: str, text: str, hint: Any, default: Any) -> Any:
    """One value of a setting by the type `hint`. Raises UsageError with an example that would be right."""
    from pydantic import TypeAdapter, ValidationError

    members = get_args(hint)
    if type(None) in members and text.lower() in ("none", "null"):
        return None
    # pydantic reads "5" as an int or float and "true" as a bool, but no commas
    is_sequence = get_origin(hint) in (list, tuple, Sequence)
    try:
        return TypeAdapter(hint).validate_python([part for part in text.split(",") if part] if is_sequence else text)
    except ValidationError as error:
        # an example as it is written: the default where there is one, else a value of the first known type
        if isinstance(default, list | tuple) and default:
            example = ",".join(map(str, default))
        elif default is not None and default is not inspect.Parameter.empty and default != ():
            example = str(default).lower() if isinstance(default, bool) else str(default)
        else:
            known = (one for one in (hint, *members) if one in _KINDS or isinstance(one, str))
            found = next(known, "none")
            example = _KINDS[found][1] if found in _KINDS else str(found)
        raise UsageError(
            f"expected {key} as {_in_words(hint)}, got {text!r}; for example --set {key}={example}"
        ) from error


def _in_words(hint: Any) -> str:
    """What a parameter of this type takes, for people."""
    members = [member for member in get_args(hint) if member not in (type(None), ...)]
    if get_origin(hint) is Literal:
        return " or ".join(map(str, members))
    if get_origin(hint) in (list, tuple, Sequence):
        count = f"{len(members)} " if len(members) > 1 else ""
        return f"{count}{_in_words(members[0]).removeprefix('a ')}s with a comma between"
    if type(None) in get_args(hint):
        return f"{' or '.join(map(_in_words, members))} or none"
    return _KINDS[hint][0] if hint in _KINDS else getattr(hint, "__name__", str(hint))


def refuse_beside(what: str, **settings: Any) -> None:
    """Raise UsageError for settings that were given (are not None) and that `what` leaves without effect.

    Example:
        >>> refuse_beside("lora=0", lora_alpha=None)
    """
    given = [f"{name}={value}" for name, value in settings.items() if value is not None]
    if given:
        raise UsageError(f"expected no {', '.join(given)} beside {what}; leave one of them out")


def is_main() -> bool:
    """True in the process that prints and writes, before there is a process group to ask (torchrun's RANK)."""
    return os.environ.get("RANK", "0") == "0"


def nearest(name: str, names: list[str]) -> str:
    """The end of a message about a wrong name: the one that was meant, or all of them.

    Args:
        name: as it was given.
        names: that exist.

    Example:
        >>> nearest("stepz", ["steps", "seed"])
        "did you mean 'steps'?"
    """
    close = get_close_matches(name, names, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"one of {', '.join(sorted(names))}"
