"""Captions -> Penn Treebank tokens in lower case, punctuation dropped: the tokens that COCO's caption kit scores.

    caption -> spellings -> chunks between white space -> longest rule at every position -> lower case, marks dropped

Equivalent to the Stanford tokeniser (CoreNLP 3.4.1, `-preserveLines -lowerCase`) of the kit without Java. Rules follow
its behaviour: of all rules that fit at a position, the one that reads furthest wins, context included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DROPPED_NAMES = (
    "''",
    "'",
    "``",
    "`",
    "-LRB-",
    "-RRB-",
    "-LCB-",
    "-RCB-",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "--",
    "...",
    ";",
)
"""The tool's list, in its order. It is compared after lower-casing, so the names of brackets never match."""
DROPPED = frozenset((*DROPPED_NAMES, '"'))
"""Tokens that the kit removes before it scores; brackets and runs such as ?! stay."""

_SPELLINGS = str.maketrans(
    {
        **dict.fromkeys("“”«»", '"'),
        **dict.fromkeys("‘’‛", "'"),
        **{"–": "--", "—": "--", "…": " ... ", "¢": " cents ", "£": " # ", "€": " $ ", "\u00a0": " ", "\u00ad": None},
        **{"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "},
    }
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_GLUE = "\u00a0"
"""Holds numbers together that are one token, as the tokeniser prints them."""
_MIXED_NUMBER = re.compile(r"(?<![\w.,:/-])(\d{1,4}) (\d{1,4}/\d{1,4})(?![\d/])")

_STARTERS = _words(
    """
    a about according additionally after an as at but earlier he her here however if in it last many more now
    once one other our she since so some such that the their then there these they this we what when while yet
    you
    """
)
"""Words that, capitalised, begin a sentence after a single letter with a period."""
_ABBREVIATIONS = _words(
    """
    al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm adj adm adv ala apr aug ave bhd
    cie col cos cpl dak dec det drs ens esq est etc ext feb fla fri gen gov hon inc ind jan jos jul jun kan ltd
    maj mar mfg mme mon mrs mtg neb nev nov oct pfc plc pte pty pvt rep rev sen sep seq sfc sgt spc ste sys tel
    thu tue wed wis wyo alex ariz assn asst assoc atty attys bancorp bldg blvd brig bros calif capt cmdr colo
    comdr conn corp dept elec govs insp intl invt kans lieut messrs mich minn mlle mont msgr natl okla penn ppte
    ppty pres prof profs ptes ptys reps sens sept supt supts tenn thurs treas tues univ wisc
    """
)
"""Words that keep their period."""
_CAPITAL_ABBREVIATIONS = frozenset("az ark del ill la mass miss ore pa tex wash".split())  # noqa: SIM905
"""Words that keep their period when they begin with a capital."""
_BEFORE_NUMBERS = frozenset("art ca fig figs no nos op pp prop".split())  # noqa: SIM905
"""Words that keep their period before a number."""

_L, _A = r"[^\W\d_²³¹]", r"[^\W_²³¹]"  # letter; letter or digit
_CLITIC = r"'(?:[sSmMdD]|[rR][eE]|[vV][eE]|[lL][lL])(?![A-Za-z])"
_ACRONYM = rf"{_L}(?:\.{_L})+"
_RULES = [
    re.compile(rule)
    for rule in (
        rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*",  # word, also with inner marks: end.start
        rf"(?:[dDoOlL]'(?={_A}))?{_A}+(?:-(?:[dDoOlL]'(?={_A}))?{_A}+)*",  # o'clock, well-known, 6pm
        rf"{_A}(?:{_A}|[.,])*(?:-(?:{_ACRONYM}\.|{_A}+))+",  # 3.5-inch, u.s.-based
        rf"{_A}+(?:-{_L}+){{0,2}}(?:\\?/{_A}+(?:-{_L}+){{0,2}}){{1,2}}",  # and/or
        r"[A-Z]+(?:[+&][A-Z]+)+",  # AT&T
        rf"{_A}+(?:_{_A}+)+",
        r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)",  # 1,299.99  3:30  -5
        rf"(?:\d{{1,4}}[-{_GLUE}])?\d{{1,4}}\\?/\d{{1,4}}",  # 1/2
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        rf"(?:[pP]h|[eE]d|{_L}\.)\.[dD]\.|{_ACRONYM}\.?|{_L}\.",  # u.s.
        r"'[nN]'|'[nN](?![A-Za-z])|[lLdDjJ]'|[yY]'(?=[A-Za-z])|Dunkin'|somethin'|'em|'[Tt]ill?(?![A-Za-z])|'cause|[cC]'mon|[sS]'mores|e'er"
        r"|nor'easter|ev'ry|li'l|nat'l|o'o",
        rf"[A-HJ-XZn]'{_L}{{2}}{_A}*",  # O'Brien
        rf"{_L}+[aeiouyAEIOUY](?!{_CLITIC})'[aeiouA-Z]{_L}*",  # ma'am
        r"'[2-9]0s|'\d\d(?!\S)",  # '90s
        _CLITIC,
        r"[nN]'[tT]",
        r"'[tT](?=[iI][sS]|[wW][aA][sS])",
        r"https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]",
        r"www\.(?:[^\s\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?",
        r"(?:[^\s\"`'<>|.!?(){},_$/-]+\.)+(?:com|net|org|edu)(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?",
        r"[a-zA-Z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)+[a-zA-Z]{2,4}",
        r"[@#][A-Za-z]\w*",
        r"<[/!?]?[A-Za-z][^\s<>]*>",
        r"[:;=8][-o*']?[()\]\[dDpP/\\|](?![A-Za-z/:,])",  # smiley
        r"US\$",
        r"--+|\.\.\.+|[?!]+|''+|``+",
    )
]
_SHORTENED = re.compile(r"[A-Za-z]*[A-MO-Za-mo-z](?=[nN]'[tT])")
"""What stands before n't."""
_ADJOINED = re.compile(
    r"(can)(?=not(?![A-Za-z']))|(gon|wan)(?=na(?![A-Za-z']))|(got)(?=ta(?![A-Za-z']))|(lem|gim)(?=me(?![A-Za-z']))"
    r"|(more)(?='n(?![A-Za-z]))",
    re.IGNORECASE,
)
"""First halves of words that are two tokens."""
_BEFORE_MARK = re.compile(rf"(?:{_L}{_A}*(?:[.!?]{_L}{_A}*)*|(?:[dDoOlL]'(?={_A}))?{_A}+(?:-{_A}+)*)\.(?=[,;:])")
"""A word with a period keeps it right before another mark."""
_PLAIN = re.compile(r"[a-z]+")
_SPLIT_PLAIN = frozenset("cannot gonna wanna gotta lemme gimme".split())  # noqa: SIM905


def ptb_tokens(caption: str) -> list[str]:
    """Tokens of one caption. Characters outside the basic plane disappear; a new line counts as a space."""
    text = "".join(c for c in caption if ord(c) < 0x10000 and c != "\u200d") if not caption.isascii() else caption
    text = _MIXED_NUMBER.sub(r"\1\v\2", text) if "/" in text else text
    text = text.translate(_SPELLINGS).replace("&amp;", "&")
    chunks = [chunk.replace("\v", _GLUE) for chunk in re.split(r"[^\S\v]+", text) if chunk]
    found: list[str] = []
    for i, chunk in enumerate(chunks):
        if _PLAIN.fullmatch(chunk) and chunk not in _SPLIT_PLAIN:
            found.append(chunk)
        else:
            found += _tokens(chunk, _follower(chunks, i) if chunk.endswith(".") else "")
    return found


def _follower(chunks: list[str], i: int) -> str:
    """What comes after a chunk with a final period, as far as it matters: a number, or the start of a sentence."""
    after = chunks[i + 1] if i + 1 < len(chunks) else ""
    if after[:1].isdigit():
        return "number"
    is_start = after[:1].isupper() and after.lower() in _STARTERS and (after.istitle() or after.isupper())
    return "start" if is_start else ""


@lru_cache(maxsize=1 << 16)
def _tokens(chunk: str, follower: str) -> tuple[str, ...]:
    """Tokens of the text between two white spaces."""
    return tuple(token for token in (_final(raw) for raw in _split(chunk, follower)) if token not in DROPPED)


def _final(token: str) -> str:
    if re.fullmatch(r"-{2,4}", token):
        return "--"
    if re.fullmatch(r"\.\.+", token):
        return "..."
    if re.fullmatch(r"''+|``+", token):
        return "''"
    return "".join(_BRACKETS.get(c, c) for c in token).lower()


def _split(chunk: str, follower: str) -> Iterator[str]:
    place = 0
    while place < len(chunk):
        end = _end(chunk, place, follower)
        yield chunk[place:end]
        place = end


def _end(chunk: str, place: int, follower: str) -> int:
    """Where the token at `place` ends. Context that a rule looks at counts for its length, as in the original."""
    end = reach = place + 1
    for rule in _RULES:
        match = rule.match(chunk, place)
        if match and match.end() > reach:
            end = reach = match.end()
    if (match := _SHORTENED.match(chunk, place)) and match.end() + 3 > reach:
        return match.end()
    if (match := _ADJOINED.match(chunk, place)) and reach <= match.end() + ((chunk[match.end()] == "'" and 2) or 3):
        return match.end()
    if (match := _BEFORE_MARK.match(chunk, place)) and match.end() + 1 > reach:
        return match.end()
    if chunk[end - 1] == "." and end == len(chunk) == place + 2 and follower == "start":
        return end - 1
    return end + 1 if chunk[end : end + 1] == "." and _keeps_period(chunk, place, end, follower) else end


def _keeps_period(chunk: str, place: int, end: int, follower: str) -> bool:
    word = chunk[place:end]
    if word.lower() in _ABBREVIATIONS or (word[0].isupper() and word.lower() in _CAPITAL_ABBREVIATIONS):
        return True
    next_is_number = chunk[end + 1 : end + 2].isdigit() if end + 1 < len(chunk) else follower == "number"
    return word.lower() in _BEFORE_NUMBERS and next_is_number
