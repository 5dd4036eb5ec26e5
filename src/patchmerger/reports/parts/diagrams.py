"""The diagram of a model: its blocks, with the tokens that enter each, and where it merges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """Blocks in a row that as many tokens enter, counted from 1; where they merge, fewer leave the last of them.

    The last one is ``None`` for "and all later ones", where the depth is not known.
    """

    first: int
    last: int | None
    tokens: int
    merges_to: int | None = None


@dataclass(frozen=True)
class Diagram:
    """A model block by block."""

    title: str
    segments: Sequence[Segment]
    caption: str

    @property
    def most(self) -> int:
        """Tokens that enter the widest block."""
        return max(segment.tokens for segment in self.segments)


def diagram(title: str, found: Results, model: Any = None) -> Diagram | None:
    """The model of a variant block by block; ``None`` for one that does not merge.

    It was found with ``block_tokens``, tokens that enter each block; or with ``mergers``, ``tokens_in`` and
    ``tokens_out``, and settings of a model that may name its depth.
    """
    if by_block := found.get("block_tokens"):
        segments = _from_tokens([*by_block, found.get("tokens_out", by_block[-1])])
    elif mergers := found.get("mergers"):
        depth = (model.get("args") or {}).get("depth") if isinstance(model, Mapping) else None
        segments = _from_mergers(mergers, found["tokens_in"], found["tokens_out"], depth)
    else:
        return None
    if len(segments) == 1 and segments[0].merges_to is None:
        return None
    places = [f"after block {s.last}, {s.merges_to} of {s.tokens} tokens go on" for s in segments if s.merges_to]
    shown = places if len(places) <= 3 else [places[0], "…", places[-1]]
    caption = f"{segments[0].tokens} tokens enter the first block; {'; '.join(shown)}."
    open_end = "" if segments[-1].last else " How many blocks follow is not in the results."
    return Diagram(title, segments, caption + open_end)


def tokens_of(found: Results) -> Results:
    """The tokens that enter each block and leave the last one, which results of single models have."""
    return {key: found[key] for key in ("block_tokens", "tokens_out")}


def _from_mergers(mergers: Iterable[Results], tokens: int, last: int, depth: int | None) -> list[Segment]:
    """Runs of blocks between mergers; how many come out says which tokens stay beside the merged ones."""
    places = sorted(mergers, key=lambda merger: merger["after"])
    beside = last - places[-1]["num_tokens"]
    segments, first = [], 1
    for merger in places:
        out = merger["num_tokens"] + beside
        segments.append(Segment(first, merger["after"], tokens, out))
        first, tokens = merger["after"] + 1, out
    if depth is None or first <= depth:
        segments.append(Segment(first, depth, tokens))
    return segments


def _from_tokens(tokens: Sequence[int]) -> list[Segment]:
    """Runs of blocks that as many tokens enter; the last number is of those that leave the last block."""
    segments, first = [], 1
    for block in range(1, len(tokens)):
        if tokens[block] != tokens[block - 1] or block == len(tokens) - 1:
            merges = tokens[block] if tokens[block] != tokens[block - 1] else None
            segments.append(Segment(first, block, tokens[block - 1], merges))
            first = block + 1
    return segments
