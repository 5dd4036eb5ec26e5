"""The mergers that a model has, and what each does to the tokens."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from torch import nn

from patchmerger.hosts import block_names, find_host
from patchmerger.hosts.state import has_adapters, saved_with_adapter, without_peft
from patchmerger.mechanism.blocks import is_merging, works_inside
from patchmerger.mechanism.options import Positions


@dataclass(frozen=True)
class InsertedMerger:
    """A merger in a model, and what it does to the tokens.

    Attributes:
        name: Its name in the model, such as ``"blocks.5.merger"``.
        after: The block that it stands after, counted from 1.
        module: The merger itself.
        num_tokens: Tokens it gives, M.
        num_kept_prefix_tokens: Prefix tokens that it leaves as they are.
        tokens_before: Tokens that arrive, prefix included; ``None`` where images of several sizes are taken.
        tokens_after: Tokens that go on, prefix included.
        positions: What became of positions in the blocks after it; ``None`` where those know of none.
        inside_block: Whether it stands in its block, between attention and MLP, and not after it.
    """

    name: str
    after: int
    module: nn.Module = field(repr=False)
    num_tokens: int
    num_kept_prefix_tokens: int
    tokens_before: int | None
    tokens_after: int
    positions: Positions | None = None
    inside_block: bool = False

    @property
    def last_whole_block(self) -> int:
        """The last block that runs as a whole before it merges, counted from 1."""
        return self.after - 1 if self.inside_block else self.after


def mergers(model: nn.Module) -> list[InsertedMerger]:
    """List the mergers in a model, first to last; an empty list where there is none.

    Args:
        model: A supported model, or a PEFT model of one; of the latter, mergers are named that no adapter would hold.

    Raises:
        UnsupportedModelError: The model is not supported, so it cannot hold a merger either.
    """
    host = find_host(without_peft(model))
    tokens = None if host.num_patches is None else host.num_patches + host.num_prefix_tokens
    found = []
    for number, (block, name) in enumerate(zip(host.blocks, block_names(model, host), strict=True), start=1):
        if not is_merging(block):
            continue
        state = block.merge_state
        tokens_after = state.num_kept_prefix_tokens + state.num_tokens
        found.append(
            InsertedMerger(
                name=f"{name}.merger",
                after=number,
                module=saved_with_adapter(block.merger) or block.merger,
                num_tokens=state.num_tokens,
                num_kept_prefix_tokens=state.num_kept_prefix_tokens,
                tokens_before=tokens,
                tokens_after=tokens_after,
                positions=state.positions,
                inside_block=works_inside(block.merger),
            )
        )
        tokens = tokens_after
        if has_adapters(model) and saved_with_adapter(block.merger) is None:
            warnings.warn(
                f"{name}.merger is in no adapter of this PEFT model: it does not train, and the adapter's files will "
                "not hold it; make the adapter with modules_to_save=['merger']",
                stacklevel=2,
            )
    return found
