"""Continuous batching: requests join and leave between decode steps, and each answer is that of a run by itself.

    ticket -> waiting (bounded) -> prefill by itself -> its rows join the cache, padded on the left
        -> [one step for all -> the rules and the draw of each row -> pieces] -> rows leave the cache

transformers' own continuous batching takes ids alone: it has no place for pictures, and pages caches in an attention of
its own. Here a prompt is read as `generate` reads it, by itself, with its media; only the steps behind it are shared.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Condition, Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.cache_utils import DynamicCache

from plait.chat import Pieces
from plait.generation.official_beams import CACHE, named
from plait.serving.batching import BusyError, ClosedError, Watch

JOINS = 4
"""Prompts read between two steps while others are being answered: each of them makes the others wait."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn: the likeliest token where temperature is 0.

    stop: texts that end it and are no part of it; logprobs: how many likeliest tokens are told per token, None for no
    log probabilities at all; seed: of the draws, None for one of its own.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A token that was drawn, with its log probability and the likeliest ones beside it as (id, log probability)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """Text that will not change any more, and the tokens drawn since the last piece."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class End:
    """An answer is over. reason: stop (an end token or a stop text), length or abort; tokens: how many were drawn."""

    reason: str
    tokens: int
    error: Exception | None = None


@dataclass(eq=False)
class Ticket:
    """One answer to write.

    inputs: of the processor, one row; put: takes pieces and the end, called from the engine's thread.
    """

    inputs: Mapping[str, Any]
    sampling: Sampling
    put: Callable[[Piece | End], Any]
    arrived: float = field(default_factory=time.monotonic)
    gone: Event = field(default_factory=Event)

    def cancel(self) -> None:
        """Nobody reads it any more: its row leaves before the next step."""
        self.gone.set()


class Row:
    """An answer that is being written: its ids, the rules of its model, and its draws."""

    def __init__(self, ticket: Ticket, model: Any, processor: Any) -> None:
        sampling = ticket.sampling
        self.ticket, self.sampling = ticket, sampling
        self.ids: Tensor = ticket.inputs["input_ids"]  # (1, seq)
        self.prompt = self.ids.shape[1]
        self.rules, self.ends = rules_of(model, ticket.inputs, sampling)
        self.generator = torch.Generator(self.ids.device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.tokens: list[Token] = []
        self.stopped = Event()
        stops = (*getattr(processor, "stop_strings", ()), *sampling.stop)
        self.pieces = Pieces(processor.decode, stops, self._say, self.stopped)
        self.pieces.put(self.ids)

    def _say(self, text: str) -> None:
        tokens, self.tokens = tuple(self.tokens), []
        self.ticket.put(Piece(text, tokens))

    @property
    def count(self) -> int:
        """Tokens drawn."""
        return self.ids.shape[1] - self.prompt

    def draw(self, logits: Tensor) -> str | None:
        """Take the next token from logits (1, vocab); the reason where it is the last one.

        Raises FloatingPointError for logits that are no numbers.
        """
        logits = logits.float()
        rules: Any = self.rules
        # the prompt is part of the ids: penalties of repetition count it, as in `generate`
        scores = rules(self.ids, logits)
        # multinomial over NaN gives any id without a word
        if torch.isnan(scores).any():
            raise FloatingPointError("the model returned numbers that are not finite")
        if self.sampling.temperature > 0:
            token = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
        else:
            # no draw at temperature 0, so that a seed changes nothing there
            token = scores.argmax(-1, keepdim=True)
        self.ids = torch.cat([self.ids, token], dim=1)
        value = int(token)
        if self.sampling.logprobs is not None:
            shares = logits[0].log_softmax(-1)  # of the model, before rules and temperature
            top = shares.topk(min(self.sampling.logprobs, len(shares)))
            likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            self.tokens.append(Token(value, float(shares[value]), likeliest))
        # before the text is told: an end token is no part of the answer
        if value in self.ends:
            return "stop"
        self.pieces.put(token)
        if self.stopped.is_set():
            return "stop"
        return "length" if self.count >= self.sampling.max_new_tokens else None

    def end(self, reason: str, error: Exception | None = None) -> None:
        """Say the rest and that it is over."""
        # nobody reads the rest of what was given up, and decoding it may be what failed
        if error is None and reason != "abort":
            self.pieces.end()
            if self.tokens:
                self._say("")
        self.ticket.put(End(reason, self.count, error))


def rules_of(model: Any, inputs: Mapping[str, Any], sampling: Sampling) -> tuple[LogitsProcessorList, set[int]]:
    """What `generate` would do to the scores of this prompt, and the ids that end its answer.

    model: with a generation configuration, whose penalties and forbidden ids hold here too; inputs: of one prompt.
    """
    how: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        how |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    ids = inputs["input_ids"]
    length = ids.shape[1]
    # transformers' own steps in their order, private or not: rules of another making would differ in some model
    config, _ = model._prepare_generation_config(None, max_length=length + sampling.max_new_tokens, num_beams=1, **how)
    model._prepare_special_tokens(config, True, device=ids.device)
    # the processor of least lengths knows `min_length` alone, which counts the prompt
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + length
    rules = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=length,
        encoder_input_ids=ids,
        prefix_allowed_tokens_fn=None,
        logits_processor=LogitsProcessorList(),
        device=ids.device,
        model_kwargs={"attention_mask": inputs.get("attention_mask")},
    )
    ends = config.eos_token_id
    return rules, set(() if ends is None else ends if isinstance(ends, list) else [ends])


class Table:
    """The cache of all rows, padded on the left to the longest, and which of its positions count.

    cache: of transformers, None while there are no rows; mask: (rows, positions), 1 where a position is a token.
    """

    def __init__(self) -> None:
        self.cache: Any = None
        self.mask = torch.zeros(0, 0, dtype=torch.long)

    def join(self, cache: Any, mask: Tensor) -> None:
        """Add rows: their cache as the prefill left it, mask (new rows, positions)."""
        if self.cache is None:
            self.cache, self.mask = cache, mask
            return
        # on the left, since new tokens are appended on the right of all rows at once
        width = max(self.mask.shape[1], mask.shape[1])
        old, new = width - self.mask.shape[1], width - mask.shape[1]
        for mine, theirs in zip(self.cache.layers, cache.layers, strict=True):
            mine.keys = torch.cat([_padded(mine.keys, old), _padded(theirs.keys, new)])
            mine.values = torch.cat([_padded(mine.values, old), _padded(theirs.values, new)])
        for name, value in _notes(cache).items():
            setattr(self.cache, name, torch.cat([getattr(self.cache, name), value]))
        pad = torch.nn.functional.pad
        self.mask = torch.cat([pad(self.mask, (old, 0)), pad(mask, (new, 0))])

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, and no column that is padding in all of them."""
        if not rows:
            self.__init__()
            return
        chosen = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[chosen]
        # the longest prompt has left, perhaps: its columns are padding in all rows that stay
        first = int(self.mask.any(0).to(torch.int).argmax())
        self.mask = self.mask[:, first:]
        for layer in self.cache.layers:  # contiguous: a view would keep what left in memory
            layer.keys = layer.keys[chosen, :, first:].contiguous()
            layer.values = layer.values[chosen, :, first:].contiguous()
        for name, value in _notes(self.cache).items():
            setattr(self.cache, name, value[chosen])

    def grow(self) -> Tensor:
        """One more position for every row; the positions of the new tokens, (rows, 1)."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        # positions count tokens, not columns: padding on the left must not shift rotary angles
        return self.mask.sum(1, keepdim=True) - 1


def _padded(x: Tensor, width: int) -> Tensor:
    """(rows, heads, positions, dim) with `width` positions of zeros in front, which no mask shows."""
    return torch.nn.functional.pad(x, (0, 0, width, 0))


def _notes(cache: Any) -> dict[str, Tensor]:
    """What a model keeps on a cache per row, such as the NTK factor that its keys were rotated with."""
    return {name: value for name, value in vars(cache).items() if isinstance(value, Tensor) and value.dim() > 0}


class Engine:
    """One model, one thread, many answers at a time.

    Args:
        model, processor: of a family that talks; on its device, in eval mode.
        max_rows: answers that are written at a time.
        max_waiting: tickets that may wait; one more is refused.
        watch: is told what waits, runs and was drawn.

    Example:
        >>> engine = Engine(model, processor)
        >>> pieces = []
        >>> engine.submit([Ticket(inputs, Sampling(max_new_tokens=20), pieces.append)])
        >>> engine.close(30)
    """

    def __init__(
        self, model: Any, processor: Any, *, max_rows: int = 16, max_waiting: int = 64, watch: Watch | None = None
    ) -> None:
        self.model, self.processor = model, processor
        self.max_rows, self.max_waiting, self.watch = max_rows, max_waiting, watch or Watch()
        accepted = inspect.signature(model.forward).parameters
        # models without the argument count positions from their mask themselves
        self._takes_positions = "position_ids" in accepted
        self._waiting: deque[Ticket] = deque()
        self._rows: list[Row] = []
        self._table = Table()
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._run, name="plait-engine", daemon=True)
        self._thread.start()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of them, or none. Raises BusyError where too many wait, ClosedError at the end of all."""
        with self._changed:
            if self._closing:
                raise ClosedError
            if len(self._waiting) + len(tickets) > self.max_waiting:
                raise BusyError
            self._waiting.extend(tickets)
            self._changed.notify()
        self._tell()

    def close(self, seconds: float = 0.0) -> None:
        """Take nothing more, finish what runs for at most so many seconds, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            for ticket in [*self._waiting, *(row.ticket for row in self._rows)]:
                ticket.cancel()
            self._changed.notify()
        self._thread.join()

    def _tell(self) -> None:
        self.watch.load(running=len(self._rows), waiting=len(self._waiting))

    def _run(self) -> None:
        """What the thread does until it is closed and all is answered."""
        with torch.inference_mode():
            while True:
                with self._changed:
                    while not self._waiting and not self._rows and not self._closing:
                        self._changed.wait()
                    if self._closing and not self._waiting and not self._rows:
                        return
                    room = self.max_rows - len(self._rows)
                    # prompts take longer than steps: too many at once would stall every answer that is being written
                    room = min(room, JOINS) if self._rows else room
                    coming = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
                for ticket in coming:
                    self._prefill(ticket)
                # after the prefills, which take long enough for readers to leave, and before a step is spent on them
                self._leave([row for row in self._rows if row.ticket.gone.is_set()], "abort")
                if self._rows:
                    self._step()
                self._tell()

    def _prefill(self, ticket: Ticket) -> None:
        """Read a prompt by itself; its row joins, unless its first token is its last."""
        if ticket.gone.is_set():
            ticket.put(End("abort", 0))
            return
        started = time.monotonic()
        try:
            row = Row(ticket, self.model, self.processor)
            inputs = {name: value for name, value in ticket.inputs.items() if value is not None}
            mask = inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
            if self._takes_positions:
                # the same positions as `generate` gives: those of padding are never looked at
                inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
            # without the configuration: sliding windows would make layers of unequal lengths, which no table joins
            cache = DynamicCache(config=None)
            # by itself and unpadded: batched prefills would round otherwise than a run by itself
            out = self.model(**inputs, **named(cache), use_cache=True, logits_to_keep=1)
            self.watch.prefilled(tokens=row.prompt, queued=started - ticket.arrived)
            reason = row.draw(out.logits[:, -1])
            self.watch.first_token(time.monotonic() - ticket.arrived)
        except Exception as error:  # of this prompt alone: the rows beside it go on
            ticket.put(End("error", 0, error))
            return
        # over with its first token: it never joins the others
        if reason is not None:
            self._finish(row, reason)
            return
        self._rows.append(row)
        self._table.join(out[CACHE], mask.long())

    def _step(self) -> None:
        """One more token for every row."""
        started = time.monotonic()
        try:
            positions = self._table.grow()
            inputs: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
            out = self.model(
                input_ids=torch.cat([row.ids[:, -1:] for row in self._rows]),
                attention_mask=self._table.mask,
                **inputs,
                **named(self._table.cache),
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1]
        except Exception as error:
            # nobody knows whose fault it is, and the cache may be half written
            for row in self._rows:
                row.end("error", error)
            self._rows, self._table = [], Table()
            return
        # by place, and removed at once: every removal copies the cache
        over: dict[int, tuple[str, Exception | None]] = {}
        for place, row in enumerate(self._rows):
            try:
                if (reason := row.draw(logits[place : place + 1])) is not None:
                    over[place] = (reason, None)
            except Exception as error:
                over[place] = ("error", error)
        self.watch.step(rows=len(self._rows), seconds=time.monotonic() - started)
        if over:
            ended = [(self._rows[place], how) for place, how in over.items()]
            self._remove(over)
            for row, (reason, error) in ended:
                self._finish(row, reason, error)

    def _finish(self, row: Row, reason: str, error: Exception | None = None) -> None:
        """Say that a row is over, whatever its last piece raises."""
        self.watch.finished(reason, row.count, time.monotonic() - row.ticket.arrived)
        try:
            row.end(reason, error)
        except Exception as fault:
            # a tokenizer that cannot decode: the reader must not wait for ever
            row.ticket.put(End("error", row.count, fault))

    def _leave(self, rows: Sequence[Row], reason: str) -> None:
        """Take rows out, wherever they are."""
        if rows:
            self._remove([self._rows.index(row) for row in rows])
            for row in rows:
                self._finish(row, reason)

    def _remove(self, places: Sequence[int] | Mapping[int, Any]) -> None:
        kept = [place for place in range(len(self._rows)) if place not in places]
        self._table.keep(kept)
        self._rows = [self._rows[place] for place in kept]
