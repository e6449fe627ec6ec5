"""Long prompts: CLIP reads them sentence by sentence, so that nothing is cut off at its 77 tokens.

After LongAlign (arXiv:2410.11817, section 3): each segment is encoded on its own, of its embeddings those of
padding and end are dropped and that of the beginning is kept, and all are put in a row, which is cut or
padded to a fixed length. Sentences are found here by rules that know decimals and abbreviations, unlike the
published code; a sentence that is too long for CLIP is halved between words.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffalign.policy.family import Cond, Family

log = logging.getLogger(__name__)

VERSION = "segments1"
"""Part of the key of cached embeddings: changes with what this module makes of a prompt."""
AT_ONCE = 64
"""Segments encoded at once."""
TITLES = re.compile(
    "mr|mrs|ms|dr|prof|st|sr|jr|rev|gen|col|capt|lt|sgt|sen|hon|mt|vol|figs|eq|pp|approx|ca|cf|vs|dept|est|bros|"
    "jan|feb|apr|aug|sept|oct|nov|dec|tues|thurs"
)
"""Abbreviations that end no sentence."""
CLOSING = re.compile("etc|inc|ltd|co|corp|al|oz|lb|lbs|ft|ave|blvd|rd")
"""Abbreviations that end a sentence where the next word has a capital."""
OPEN, CLOSE = "\"'(\\[\u201c\u2018\u00ab", "\"')\\]\u201d\u2019\u00bb"
END = re.compile(rf"[.!?;\u2026]+[{CLOSE}]*(?=\s|$)|;+|\n+")


@dataclass(frozen=True, kw_only=True)
class LongPrompts:
    """How prompts beyond CLIP's 77 tokens are encoded."""

    length: int = 240
    """CLIP positions of every prompt; longer ones are cut, shorter ones padded."""
    tail: int = 60
    """Last embeddings of the empty prompt whose mean is the padding; at most all of its padding."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.length < 2 or self.tail < 1:
            raise ValueError(
                f"long_prompts.length is {self.length} and tail {self.tail}; at least 2 and 1 are needed"
            )


# ---------------------------------------------------------------------- sentences


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, in order, without the space around them; together they are the whole text.

    One ends at a full stop, at ! ? ; or an ellipsis, with the quotes and brackets that close behind it, or at
    a new line. The dot of a decimal, an abbreviation, an initial or a number of a list ends none.
    """
    sentences, start = [], 0
    for end in END.finditer(text):
        if re.match(rf"\.[{CLOSE}]*$", end.group()) and not _ends(
            text[start : end.start()], text[end.end() :]
        ):
            continue
        sentences.append(text[start : end.end()].strip())
        start = end.end()
    sentences.append(text[start:].strip())
    return [s for s in sentences if s]


def _ends(before: str, after: str) -> bool:
    """Whether one dot between two texts ends a sentence."""
    if not after.strip():
        return True
    word = re.split(rf"[\s{OPEN}]", before)[-1]
    capital = bool(re.match(rf"\s*[{OPEN}]*[A-Z]", after))
    if CLOSING.fullmatch(word.lower()) or re.fullmatch(
        r"([a-df-hj-z]\.)+[a-z]", word
    ):  # p.m, but not e.g and i.e
        return capital
    if word.lower() in ("no", "nos", "fig"):
        return not re.match(r"\s*\d", after)
    if re.fullmatch("[A-Z]", word):  # an initial
        return not capital
    if word.isdecimal():  # at the start it numbers a list
        return before.strip() != word
    return not TITLES.fullmatch(word.lower()) and not re.fullmatch(r"([A-Za-z]\.)+[A-Za-z]", word)


def segments(text: str, tokenizer: Any) -> list[str]:
    """Sentences of a text, each short enough for a tokenizer's window; an empty text is one empty segment."""
    room = int(tokenizer.model_max_length) - 2  # beginning and end take a position each
    return [part for s in split_sentences(text) or [""] for part in _fit(s, tokenizer, room)]


def _fit(text: str, tokenizer: Any, room: int) -> list[str]:
    """A text, halved until each part has at most ``room`` tokens."""
    if len(text) < 2 or _count(text, tokenizer) <= room:
        return [text]
    cut = _middle(text)
    return [part for half in (text[:cut], text[cut:]) for part in _fit(half.strip(), tokenizer, room)]


def _middle(text: str) -> int:
    """Where to halve: behind the comma next to the middle, or at the space next to it, or in a word."""
    half = len(text) // 2
    for mark in (r"[,:]\s", r"\s"):
        places = [m.end() for m in re.finditer(mark, text) if len(text) / 4 <= m.end() <= 3 * len(text) / 4]
        if places:
            return min(places, key=lambda place: abs(place - half))
    return half


def _count(text: str, tokenizer: Any) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


# ---------------------------------------------------------------------- embeddings


def encode_long(
    family: Family, pipeline: Any, prompts: Sequence[str], text_length: int, options: LongPrompts
) -> list[Cond]:
    """One dict of CPU tensors per prompt, as ``Family.encode_prompts`` gives, with ``length`` CLIP positions.

    The pooled embedding is the mean over segments; a T5 encoder reads the prompt whole (``text_length``).

    Raises:
        ValueError: the CLIP tokenizers of the pipeline cut words differently.
    """
    parts = [segments(p, pipeline.tokenizer) for p in prompts]
    every = list(dict.fromkeys(["", *(s for p in parts for s in p)]))
    rows = _encode_segments(family, pipeline, every, text_length)
    text, pooled = {s: r["text"] for s, r in rows.items()}, {s: r.get("pooled") for s, r in rows.items()}
    counts = {s: 1 + _agreed_count(s, pipeline) for s in every}
    padding = text[""][2:][-options.tail :].mean(0)  # the first two are beginning and end
    whole = family.whole_text(pipeline, prompts, text_length)
    found, cut = [], 0
    for i, (prompt, own) in enumerate(zip(prompts, parts, strict=True)):
        joined = torch.cat([text[s][: counts[s]] for s in own])
        cut += len(joined) > options.length
        cond = {"text": _fixed(joined, padding, options.length)}
        if whole is not None:
            cond["text"] = torch.cat([cond["text"], whole[i]])
        vectors = [v for v in (pooled[s] for s in own) if v is not None]
        if vectors:
            cond["pooled"] = torch.stack(vectors).mean(0)
        if prompt == "" and family.zero_unconditional(pipeline):
            cond = {k: torch.zeros_like(v) for k, v in cond.items()}
        found.append(cond)
    if cut:
        log.warning(
            "%d of %d prompts have more than %d tokens and are cut there: raise policy.long_prompts.length",
            cut, len(prompts), options.length,
        )  # fmt: skip
    return found


def _encode_segments(
    family: Family, pipeline: Any, texts: Sequence[str], text_length: int
) -> dict[str, dict[str, Tensor]]:
    """CLIP's embeddings of each text, padding and all."""
    rows: list[dict[str, Tensor]] = []
    for start in range(0, len(texts), AT_ONCE):
        rows += family.encode_segments(pipeline, texts[start : start + AT_ONCE], text_length)
    return dict(zip(texts, rows, strict=True))


def _agreed_count(text: str, pipeline: Any) -> int:
    """Tokens of a text, which all CLIP towers must agree on: their embeddings lie side by side."""
    towers = [getattr(pipeline, n, None) for n in ("tokenizer", "tokenizer_2")]
    counts = {_count(text, tokenizer) for tokenizer in towers if tokenizer is not None}
    if len(counts) > 1:
        raise ValueError(
            f"the CLIP tokenizers of this pipeline cut {text[:60]!r} into {sorted(counts)} tokens: long "
            "prompts need towers of one vocabulary; set policy.long_prompts=null"
        )
    return counts.pop()


def _fixed(rows: Tensor, padding: Tensor, length: int) -> Tensor:
    """(length, D): rows, cut or followed by padding."""
    missing = length - len(rows)
    return rows[:length] if missing <= 0 else torch.cat([rows, padding.expand(missing, -1)])


def embedding_options(cond: Cond, pipeline: Any, device: torch.device) -> dict[str, Tensor]:
    """The pipeline's arguments for embeddings: of B prompts, followed by those of B empty ones."""
    options: dict[str, Tensor] = {}
    dtype = next(pipeline.text_encoder.parameters()).dtype
    for name, argument in (("text", "prompt_embeds"), ("pooled", "pooled_prompt_embeds")):
        if name in cond:
            own, empty = cond[name].to(device, dtype).chunk(2)
            options |= {argument: own, f"negative_{argument}": empty}
    return options
