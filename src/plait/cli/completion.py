"""`plait --show-completion SHELL`: a script that completes verbs, sub-verbs and options; files are the shell's own.

verbs -> their commands -> words by position -> a script for bash, zsh or fish

    eval "$(plait --show-completion bash)"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plait.errors import UsageError

SHELLS = ("bash", "zsh", "fish")

_BASH = """_plait() {
  local words current="${COMP_WORDS[COMP_CWORD]}" place="${COMP_WORDS[1]}"
  [ "$COMP_CWORD" -gt 2 ] && place="$place ${COMP_WORDS[2]}"
  [ "$COMP_CWORD" -eq 1 ] && place=""
  case "$place" in
%s
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _plait plait
"""


def script(shell: str, commands: Mapping[str, Callable[[], Any]]) -> str:
    """The script of a shell.

    Args:
        shell: one of `SHELLS`.
        commands: verb -> what loads its command.

    Raises:
        UsageError: for another shell.
    """
    if shell not in SHELLS:
        raise UsageError(f"expected a shell of {', '.join(SHELLS)}, got {shell!r}; choose one of them")
    words = {"": [*commands, "--help", "--version"]}
    for verb, load in commands.items():
        made = load()
        below = getattr(made, "commands", {})
        words[verb] = [*below, *_options(made)]
        words |= {f"{verb} {name}": _options(one) for name, one in below.items()}
    if shell == "fish":
        lines = [f"complete -c plait -f -n __fish_use_subcommand -a '{' '.join(words.pop(''))}'"]
        for place, known in words.items():
            seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in place.split())
            lines.append(f"complete -c plait -n '{seen}' -a '{' '.join(known)}'")
        return "\n".join(lines) + "\n"
    groups = {place.split()[0] for place in words if " " in place}
    cases = []
    for place, known in words.items():
        # a verb without sub-verbs has the same words wherever the cursor is
        pattern = f'"{place}"' if not place or " " in place or place in groups else f'"{place}"|"{place} "*'
        cases.append(f'    {pattern}) words="{" ".join(known)}";;')
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return start + _BASH % "\n".join(cases)


def _options(command: Any) -> list[str]:
    """The long options of a command, in its order."""
    return [*(name for one in command.params for name in one.opts if name.startswith("--")), "--help"]
