"""Captions -> Penn Treebank tokens in lower case, punctuation dropped: the tokens that COCO's caption kit scores.

    caption -> spellings -> chunks between white space -> longest rule at every position -> lower case, marks dropped

Equivalent to the Stanford tokeniser (CoreNLP 3.4.1, `-preserveLines -lowerCase`) of the kit without Java. Rules follow
its behaviour: of all rules that fit at a position, the one that reads furthest wins, context included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
        **dict.fromkeys("‘‛", "`"),
        **{"–": "--", "—": "--", "…": " ... ", "¢": " cents ", "£": " # ", "€": " $ ", "\u00a0": " ", "\u00ad": None},
        # two spaces in front: what is written out is no number to the abbreviation before it
        **{"½": "  1/2 ", "¼": "  1/4 ", "¾": "  3/4 ", "⅓": "  1/3 ", "⅔": "  2/3 "},
    }
)
_UNKNOWN = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x80-\x84\x86-\x9f\u200b-\u200f\u2012\u2015\u2024\u2025\u2027\u202a-\u202f\u2039\u203a\u203c\u203d\u2043"
    "\u2045-\u206f\u20a1-\u20a3\u20a5-\u20ab\u20ad-\u20ff\u3003\u3004\u3007-\u3011\u3013-\u3030\ud800-\uf8ff\ufe00-\ufe6f"
    "\ufefd-\uff00\U00010000-\U0010ffff]"
)
"""Characters that the tool does not know: they disappear and end a token."""
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ROUND = {bracket: _BRACKETS[bracket] for bracket in "()"}
_GLUE = "\u00a0"
"""Holds numbers together that are one token, as the tokeniser prints them."""
_FRACTION = r"(?:\d{1,4}[-SPACE])?\d{1,4}(?:\\?/|\u2044)\d{1,4}"  # 1/2, 3 1/2
_TELEPHONE = r"(?:\(\d{2,3}\)[SPACE]?|\+{0,2}(?:\d{2,4}[-SPACE])?\d{2,4}[-SPACE])\d{3,4}[-SPACE]?\d{3,5}"
_APART = re.compile(r"\d\)?[ \u00a0]\d")
_ACROSS = [re.compile(rule.replace("SPACE", " \u00a0")) for rule in (_FRACTION, _TELEPHONE)]
"""Tokens that may hold spaces, also those that do not break lines."""
_ENDS = re.compile("[ \t\u00a0½¼¾⅓⅔]")

_STARTERS = _words(
    """
    a about according additionally after an as at but earlier he her here however if in it last many more now
    once one other our she since so some such that the their then there these they this we what when while     yet
    you mr. ms.
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

_L, _A = r"(?:[^\W\d_²³¹]|[\u0300-\u036f])", r"(?:[^\W_²³¹]|[\u0300-\u036f])"  # letter; letter or digit
_MARK = r"['`]"
_WORD = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"  # also with inner marks: end.start
_PART = rf"(?:[dDoOlL]{_MARK}{_A})?{_A}+"
_ACRONYM = rf"{_L}(?:\.{_L})+"
_HYPHENED = rf"{_A}(?:{_A}|[.,])*(?:-(?:{_ACRONYM}\.|{_A}+))+"
_FILE = (
    "bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql"
    "|tar|txt|wav|x|xml|zip"
)
_RULES = [
    re.compile(rule)
    for rule in (
        r"([cC][aA][nN])[nN][oO][tT]|([gG][oO][nN]|[wW][aA][nN])[nN][aA]|([gG][oO][tT])[tT][aA]",
        r"([lL][eE][mM]|[gG][iI][mM])[mM][eE]|([mM][oO][rR][eE])'[nN](?![A-Za-z])",
        rf"({_WORD})'(?:[sSmMdD]|[rR][eE]|[vV][eE]|[lL][lL])",  # they're
        rf"([A-Za-z]*[A-MO-Za-mo-z])[nN]{_MARK}[tT]",  # can't
        _WORD,
        rf"{_PART}(?:[-‐‑]{_PART})*",  # o'clock, well-known, 6pm
        _HYPHENED,  # 3.5-inch, u.s.-based
        rf"{_A}+(?:-{_L}+){{0,2}}(?:\\?/{_A}+(?:-{_L}+){{0,2}}){{1,2}}",  # and/or
        r"[A-Z]+(?:[+&][A-Z]+)+",  # AT&T
        rf"{_A}+(?:-{_A}+)*(?:_{_A}+)+",
        r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)",  # 1,299.99  3:30  -5
        _FRACTION.replace("SPACE", _GLUE),
        _TELEPHONE.replace("SPACE", _GLUE),
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        rf"(?:[pP]h|[eE]d|{_L}\.)\.[dD]\.|{_ACRONYM}\.?|{_L}\.",  # u.s.
        r"'[nN]'|'[nN](?!\S)|[lLdDjJ]'|[yY]'(?=[A-Za-z])|Dunkin'|somethin'|[oO]l'|'em|'[Tt]ill?(?![A-Za-z])|'cause"
        r"|[cC]'mon|[sS]'mores|e'er|nor'easter|ev'ry|li'l|nat'l|o'o",
        rf"[A-HJ-XZn]{_MARK}{_L}{{2,}}",  # O'Brien
        rf"{_L}+[aeiouyAEIOUY]{_MARK}[aeiouA-Z]{_L}*",  # ma'am
        r"'[2-9]0[sS]|('\d\d)\s",  # '90s
        r"('[sSmMdD])(?:[^A-Za-z]|$)|('(?:[rR][eE]|[vV][eE]|[lL][lL]))[^A-Za-z]",  # 're ends no text
        rf"[nN]{_MARK}[tT]",
        r"'[tT](?=[iI][sS]|[wW][aA][sS])",
        rf"({_A}+(?:\.{_A}+)*\.(?i:{_FILE}))[\s.?!,]",  # 1.jpg
        r"https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]",
        r"www\.(?:[^\s\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?",
        r"(?:[^\s\"`'<>|.!?(){},_$/-]+\.)+(?:com|net|org|edu)(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?",
        r"<?[a-zA-Z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?",
        rf"@[A-Za-z_][A-Za-z_0-9]*|#{_L}+",
        r"<[/!?]?[A-Za-z][^\s<>]*>",
        r"([<>]?[:;=8][-o*']?[()\]\[dDpP\\|])[^A-Za-z]",  # smiley
        r"[-^x=~<>']_[-^x=~<>']|[\^x=~<>]\.[\^x=~<>]|\([-^x=~<>'][_.]?[-^x=~<>']\)",
        r"US\$",
        rf"((?:{_WORD}|{_PART}(?:-{_A}+)*|{_HYPHENED})\.)[,;:]",  # a word keeps its period before another mark
        r"--+|\.\.\.+|[?!]+|''|``|@+|#+|\*+|__+",
    )
]
"""What a token looks like. Where a rule has groups, the token is the group and the rest only counts for its length."""
_PLAIN = re.compile(r"[a-z]+")
_SPLIT_PLAIN = frozenset("cannot gonna wanna gotta lemme gimme".split())  # noqa: SIM905


def ptb_tokens_of(captions: Sequence[str]) -> list[list[str]]:
    """Tokens of captions that the tool reads in one text, a line each.

    Args:
        captions: in their order: only the last one ends the text, and the others are read with what follows.
    """
    return [ptb_tokens(caption, after=after) for caption, after in zip(captions, [*captions[1:], None], strict=True)]


def ptb_tokens(caption: str, *, after: str | None = None) -> list[str]:
    """Tokens of one caption. Characters outside the basic plane end a token; a new line counts as a space.

    after: the caption in the next line, whose first word decides about a period before it; None for the last one, of
        which the tool splits a final "they're" into they and re.
    """
    # a tab, which never stands within a number as a space may
    text = caption if caption.isascii() and caption.isprintable() else _UNKNOWN.sub("\t", caption)
    text = _glued(text) if _APART.search(text) else text
    text = text.translate(_SPELLINGS).replace("&amp;", "&") + ("" if after is None else " ")
    chunks = [chunk.replace("\v", _GLUE) for chunk in re.split(r"(?<=[^\S\v])(?![^\S\v])", text.lstrip())]
    following = [chunk for chunk in chunks if chunk]
    if after and not after[0].isspace():
        following.append(f"{after.split(maxsplit=1)[0]} ")
    found: list[str] = []
    for i, chunk in enumerate(chunks):
        word = chunk.rstrip()
        # most words of captions, told by one expression in place of all rules
        if _PLAIN.fullmatch(word) and word not in _SPLIT_PLAIN:
            found.append(word)
        elif word:
            # what follows matters for a final period only, and leaving it out lets the cache hit more often
            found += _tokens(word, chunk != word, _follower(following, i) if word.endswith(".") else "")
    return found


def _glued(text: str) -> str:
    """The text with a vertical tab in place of every space within a number that is one token."""
    place = 0
    while True:
        found = [match for rule in _ACROSS if (match := rule.search(text, place))]
        if not found:
            return text
        match = min(found, key=lambda one: (one.start(), -one.end()))
        # only where a token begins: the 1 of "x1 1/2" belongs to the x
        begin = match.start() - len(_ENDS.split(text[: match.start()])[-1])
        while begin < match.start():
            begin = _end(text.replace("’", "'").replace("\v", _GLUE), begin, len(text), "")
        is_token = begin == match.start()
        if is_token:
            span = re.sub("[ \u00a0]", "\v", match[0])
            text = text[: match.start()] + span + text[match.end() :]
        place = match.end() if is_token else match.start() + 1


def _follower(chunks: list[str], i: int) -> str:
    """What comes after a chunk with a final period, as far as it matters: a number, or the start of a sentence."""
    after = chunks[i + 1] if i + 1 < len(chunks) else ""
    if after[:1].isdigit() and len(chunks[i]) == len(chunks[i].rstrip()) + 1:  # one space, not two
        return "number"
    word = after.rstrip()
    is_start = word != after and word.lower() in _STARTERS and (word.istitle() or word.isupper())
    return "start" if is_start else ""


@lru_cache(maxsize=1 << 16)
def _tokens(chunk: str, has_space: bool, follower: str) -> tuple[str, ...]:
    """Tokens of the text between two white spaces. has_space: one follows it."""
    return tuple(token for token in (_final(raw) for raw in _split(chunk, has_space, follower)) if token not in DROPPED)


def _final(token: str) -> str:
    """A token as the tool prints it: runs of marks made one, brackets spelled out, lower case."""
    if re.fullmatch(r"-{2,4}", token):
        return "--"
    if re.fullmatch(r"\.\.+", token):
        return "..."
    if re.fullmatch(r"''+|``+", token):
        return "''"
    if "’" in token and _is_normalised(token.replace("’", "'")):
        return token.replace("’", "'").lower()
    brackets = _BRACKETS if len(token) == 1 else _ROUND  # :( is written out, :[ is not
    return "".join(brackets.get(c, c) for c in token).lower()


def _is_normalised(token: str) -> bool:
    """Whether the tool writes a curly apostrophe straight in this token: alone, in 's and its kin, in n't."""
    return re.fullmatch(r"'+|n?'t|'(?:[sdm]|re|ve|ll)", token, re.IGNORECASE) is not None


def _split(chunk: str, has_space: bool, follower: str) -> Iterator[str]:
    # a curly apostrophe is matched as a straight one, and, unlike one, may end the text
    """Raw tokens of a chunk, left to right."""
    text, place = chunk.replace("’", "'") + " " * (has_space or "’" in chunk), 0
    while place < len(chunk):
        end = _end(text, place, len(chunk), follower)
        yield chunk[place:end]
        place = end


def _end(text: str, place: int, length: int, follower: str) -> int:
    """Where the token at `place` ends.

    Context that a rule looks at counts for its length, as in the original: a rule may win by what it
    reads behind the token.
    """
    end = reach = place + 1
    for rule in _RULES:
        match = rule.match(text, place)
        if match and match.end() > reach:
            end, reach = match.end(match.lastindex or 0), match.end()
    # "I." before a capitalised starter such as "The" is a word and a full stop, not an initial
    if text[end - 1] == "." and end == length == place + 2 and follower == "start":
        return end - 1
    return end + 1 if text[end : end + 1] == "." and _keeps_period(text, place, end, follower) else end


def _keeps_period(text: str, place: int, end: int, follower: str) -> bool:
    """Whether the word from `place` to `end` keeps the period behind it: an abbreviation.

    Some words keep it always, some with a capital only, some before a number only.
    """
    word = text[place:end]
    if word.lower() in _ABBREVIATIONS or (word[0].isupper() and word.lower() in _CAPITAL_ABBREVIATIONS):
        return True
    after = text[end + 1 : end + 2].strip()
    next_is_number = after.isdigit() if after else follower == "number"
    return word.lower() in _BEFORE_NUMBERS and next_is_number
