"""The `plait` command: a table of verbs, each an importable function that is loaded when it is called.

argv -> verb -> module:function (typer reads its annotations) -> exit code

Exit codes: 0 done, 1 the work failed, 2 the command was wrong.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import plait
from plait.errors import MissingExtraError, UsageError, missing_line, os_line
from plait.lazy import importing

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130  # what shells give a command that Ctrl-C ended: 128 + SIGINT
_CLICK = (
    (re.compile(r"^Missing command$"), "expected a sub-verb, got none"),
    (re.compile(r"^Missing (argument|option|parameter) (.*)$"), r"expected the \1 \2, got none"),
    (re.compile(r"^No such command (.*?)\. Did you mean (.*)\?$"), r"expected a sub-verb, got \1; did you mean \2?"),
    (re.compile(r"^No such command (.*?)$"), r"expected a sub-verb, got \1"),
    (re.compile(r"^No such option:? (.*)$"), r"expected an option of this verb, got '\1'"),
    (re.compile(r"^Option (.*?) requires an argument$"), r"expected a value after \1, got none"),
    (re.compile(r"^Invalid value for (.*?): (.*)$"), r"expected another value of \1: \2"),
    (re.compile(r"^Got unexpected extra argument(?:s|\(s\))? \((.*)\)$"), r"expected no more arguments, got \1"),
)
"""click's words -> ours."""


class Verb(NamedTuple):
    """Where a verb lives, and its line in the help.

    Args:
        home: `module:function`, or `module:app` for a verb with sub-verbs.
        help: what it does, in a few words.
        shown_first: whether `plait --help` lists it above the others.
        opens: whether it opens models or runs recipes, and so takes `--plugin`.
        kind: `module:class` of its command, where it is no plain one.
        examples: command lines that end its help; our own verbs have theirs in `plait.cli.examples`.
    """

    home: str
    help: str
    shown_first: bool = False
    opens: bool = True
    kind: str = "typer.core:TyperCommand"
    examples: tuple[str, ...] = ()

    def load(self) -> Any:
        """The function, or the typer app of a verb with sub-verbs."""
        return _named(self.home)


def _named(place: str) -> Any:
    module, _, attribute = place.partition(":")
    with importing():
        return getattr(import_module(module), attribute)


VERBS: dict[str, Verb] = {
    "search": Verb("plait.cli.search:search", "query an index with text, images, sounds or any mixture", True),
    "caption": Verb("plait.cli.assist:caption", "describe images and videos", True),
    "answer": Verb("plait.cli.assist:answer", "answer a question about images and videos", True),
    "chat": Verb("plait.cli.chat:chat", "talk with a model about images, videos and text", True),
    "train": Verb(
        "plait.cli.train:train",
        "run a recipe: a published training stage, or your own",
        True,
        kind="plait.cli.train:RecipeCommand",
    ),
    "eval": Verb("plait.cli.evaluate:evaluate", "measure a model on a task, with chance beside it", True),
    "serve": Verb("plait.cli.serve:serve", "put models behind OpenAI's API: chat, embeddings, rerank, search", True),
    "ui": Verb("plait.cli.ui:ui", "a page in the browser: search, chat, questions about pictures", True),
    "get": Verb("plait.cli.models:get", "fetch a model by its name, once: official files, hub ids, smollm2"),
    "embed": Verb("plait.cli.search:embed", "turn files into vectors"),
    "index": Verb("plait.cli.index:app", "an index on disk: add, watch, check, similar, duplicates, delete ..."),
    "ground": Verb("plait.cli.assist:ground", "find what a phrase names in images"),
    "detect": Verb("plait.cli.dense:detect", "find the objects of images: boxes, masks, drawings, COCO results"),
    "segment": Verb("plait.cli.dense:segment", "name the class of every pixel of images: class maps, drawings"),
    "classify": Verb("plait.cli.assist:classify", "name what images, videos or texts show"),
    "data": Verb("plait.cli.data:app", "data sets: build, check, from-folder, from-benchmark, pack", opens=False),
    "plan": Verb("plait.cli.plan:plan", "what each stage of a recipe trains, and the memory it needs"),
    "info": Verb("plait.cli.models:info", "what is in a model directory"),
    "models": Verb("plait.cli.models:models", "official checkpoints and local models, with size and licence"),
    "doctor": Verb("plait.cli.parity:doctor", "check the installation: versions, extras, devices, cases", opens=False),
    "convert": Verb("plait.cli.models:convert", "official checkpoint -> model directory"),
    "merge": Verb("plait.cli.models:merge", "model directory + LoRA adapter -> model directory"),
    "upcycle": Verb("plait.cli.models:upcycle", "Llama directory -> mPLUG-Owl2 with a way per modality"),
    "export": Verb("plait.cli.models:export", "the tower of one modality -> ONNX, or a torch program"),
    "parity": Verb("plait.cli.parity:parity", "run golden cases and say what holds"),
}


def verbs() -> dict[str, Verb]:
    """Every verb: those of installed packages (entry points `plait.verbs`, such as the quick start), then our own.

    `"data.build"` among the entry points is a sub-verb, which `plait data` takes.
    """
    found = entry_points(group="plait.verbs")
    # Our own last: an installed package cannot put its code in place of a verb of ours.
    return {entry.name: entry.load() for entry in found if "." not in entry.name} | VERBS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: without the program name; by default that of the process.

    Returns:
        0 done, 1 the work failed, 2 the command was wrong, 130 interrupted.

    Example:
        >>> main(["--version"])
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] == "--version":
        print(f"plait {plait.__version__}")
        return 0
    name, *rest = args
    if name == "--show-completion":
        return _show_completion(rest)
    if name not in verbs():
        return _fail(f"expected a verb, got {name!r}; {_nearest(name)}", 2)
    code = run_verb(name, rest, debug=debug)
    if code == INTERRUPTED and argv is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # threads are joined now: another Ctrl-C would print a traceback
    return code


def _show_completion(args: Sequence[str]) -> int:
    """Print the script of a shell: the one that is named, else the one of `$SHELL`."""
    from plait.cli.completion import script

    shell = args[0] if args else Path(os.environ.get("SHELL", "bash")).name
    try:
        print(script(shell, {name: partial(command, name) for name in verbs()}), end="")
    except UsageError as error:
        return _fail(str(error), 2)
    return 0


def run_verb(name: str, args: list[str], *, debug: bool = False) -> int:
    """Load the verb `name`, run it with `args`, and turn what it raises into one line and an exit code.

    Args:
        name: a key of `verbs()`.
        args: of the verb.
        debug: print the traceback too.

    Raises:
        Exception: what no input can explain, such as a fault of Plait; its traceback is wanted.
    """
    import typer

    # typer carries its own click or uses the package, by version: its base classes are the same by position
    bad_usage, base = cast("tuple[type[Exception], type[Exception]]", typer.BadParameter.__mro__[1:3])
    from plait.media.limits import raised
    from plait.reading import outside
    from plait.terminal import guarded

    shows_help = not args or "--help" in args  # which is ours, and may be coloured
    try:
        # --limit and --outside hold for one command
        with nullcontext() if shows_help else guarded(), raised(), outside(None):
            result = command(name).main(args=args, prog_name=f"plait {name}", standalone_mode=False)
    except (OSError, ValueError, ImportError, KeyboardInterrupt, typer.Abort, base, *_odd()) as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt | typer.Abort):
            return _interrupted(name)
        if isinstance(error, ImportError) and not _is_missing_package(error):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is on the screen already
            return 2
        # Which of the two it is decides what a script does next: correct the command, or look at its data.
        code = 2 if isinstance(error, (bad_usage, UsageError)) else 1
        return _fail(_one_line(error) + (f"; see plait {name} --help" if isinstance(error, bad_usage) else ""), code)
    if result == INTERRUPTED:
        return _interrupted(name)
    return result if isinstance(result, int) else 0


def command(name: str) -> Any:
    """The command object of the verb `name`: a typer app as it is, or one made from the function's annotations.

    Only this verb's module is imported, so that a verb waits for no other's packages.
    """
    import typer
    from typer.main import get_command, get_group

    from plait.cli.examples import EXAMPLES, with_examples
    from plait.cli.options import with_plugins

    verb = verbs()[name]
    target: Callable[..., Any] | typer.Typer = verb.load()
    if isinstance(target, typer.Typer):
        made = get_group(target)  # a group even where it has one sub-verb
    else:
        app = typer.Typer(add_completion=False)
        app.command(name, cls=_named(verb.kind))(target)
        made = get_command(app)
    made = with_examples(name, made, verb.examples or EXAMPLES.get(name, ()))
    return with_plugins(name, made) if verb.opens else made


def overview() -> str:
    """What `plait --help` prints."""
    table = verbs()
    width = max(map(len, table)) + 2
    first, more = (
        [f"  {name:<{width}}{verb.help}" for name, verb in table.items() if verb.shown_first is shown]
        for shown in (True, False)
    )
    return "\n".join(
        [
            "Plait: train, search and study modular multimodal models.",
            "",
            "usage: plait VERB [OPTIONS]          plait VERB --help tells more",
            "",
            *first,
            "",
            "more:",
            *more,
            "",
            "  --debug on any verb shows the traceback of an error; plait --version prints the version.",
            '  eval "$(plait --show-completion bash)" completes verbs and options (zsh and fish too).',
        ]
    )


def _nearest(name: str) -> str:
    """What to say after an unknown verb: the nearest one, or where they are listed."""
    close = get_close_matches(name, verbs(), n=1, cutoff=0.5)
    return f"did you mean 'plait {close[0]}'?" if close else "plait --help lists the verbs"


def _near_option(option: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` for an unknown option, or nothing; dashes do not count as likeness."""
    bare = {name.lstrip("-"): name for name in known}
    close = get_close_matches(option.lstrip("-"), bare, n=1, cutoff=0.65)
    return f"; did you mean {bare[close[0]]!r}?" if close else ""


def _is_missing_package(error: ImportError) -> bool:
    """True for a package the user can install, False for a fault inside Plait or inside an installed package."""
    return isinstance(error, MissingExtraError) or (
        isinstance(error, ModuleNotFoundError) and not (error.name or "plait").startswith("plait")
    )


def _odd() -> tuple[type[Exception], ...]:
    """What a file of unexpected shape or size makes Python itself and safetensors raise, the latter where imported."""
    damaged = getattr(sys.modules.get("safetensors"), "SafetensorError", MemoryError)
    return MemoryError, RecursionError, OverflowError, TypeError, damaged


def _one_line(error: BaseException) -> str:
    """An error in the words "expected X, got Y", whoever raised it; never empty, never more than a line."""
    if isinstance(error, OSError) and error.strerror:
        text = os_line(error)
    elif type(error).__name__ == "SafetensorError" and "No space left on device" in str(error):  # convert and merge
        text = os_line(OSError(errno.ENOSPC, "no space left on device"))
    elif (option := getattr(error, "option_name", None)) and (known := getattr(error, "possibilities", None)):
        text = f"expected an option of this verb, got {option!r}{_near_option(option, known)}"
    elif isinstance(error, ModuleNotFoundError):
        text = missing_line(error)
    elif isinstance(error, MemoryError):
        text = "expected work that fits in memory, got more; take a smaller batch, model or file"
    elif isinstance(error, RecursionError):
        text = "expected values of fewer levels, got some nested too deep; check the files that were read"
    elif isinstance(error, OverflowError | TypeError) or type(error).__name__ == "SafetensorError":
        text = f"expected other values, got {type(error).__name__}: {error}; check the files, or add --debug"
    else:
        describe = getattr(error, "format_message", error.__str__)  # click's errors word themselves
        text = describe().rstrip(".")
        for theirs, ours in _CLICK:
            text = theirs.sub(ours, text)
    return " ".join(text.split()) or type(error).__name__


def _fail(message: str, code: int) -> int:
    """Print an error as `plait: ...` and hand its exit code back; names of files may not be printable as they are."""
    from plait.terminal import printable

    line = printable(message).encode(sys.stderr.encoding or "ascii", "backslashreplace")
    print(f"plait: {line.decode(sys.stderr.encoding or 'ascii')}", file=sys.stderr)
    return code


def _interrupted(name: str) -> int:
    """Say so below what was on the line, where a terminal shows ^C."""
    print(f"\nplait: {name} was interrupted", file=sys.stderr)
    return INTERRUPTED
