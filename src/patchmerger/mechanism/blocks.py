"""The blocks that a merger changes: the one that merges, and those after a merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.block_parts import BlockParts, Seen
from patchmerger.mechanism.options import Positions
from patchmerger.mechanism.origin import Origin, origin_of
from patchmerger.mechanism.patch_grid import PatchGrid
from patchmerger.mechanism.subclassing import Subclass
from patchmerger.mechanism.tracing import is_traced


@dataclass(frozen=True)
class MergeState:
    """What a block from the first merge on knows; it is kept in the block as ``merge_state``.

    Attributes:
        inputs: What of the block's arguments counts on N tokens.
        argument_names: Names of its positional arguments after the tokens.
        positions: What merged tokens have in place of positions; ``None`` where the host's blocks know of none.
        after_merge: Whether the tokens that come in are merged ones.
        num_kept_prefix_tokens: The first tokens of the sequence, which no merger changes.
        num_tokens: M, the tokens that this block's merger gives; 0 where the block does not merge.
        num_patches: N, where images of one size are taken; else ``None``.
        num_expected_tokens: P + N where another number at this block's merger is refused, or ``None``.
        sequence_first: Whether the block takes and gives tokens as (N, B, D).
        grid: Where the patches are that come to this block's merger, if that must know and they are not merged ones.
        places_are_needed: Whether this block's merger, or one further on, must know where merged tokens are.
        sizes_are_needed: Whether the sizes of merged tokens travel with them, for attention that counts on them.
        parts: The block's attention and MLP, where a reducer works between them or attention counts on sizes.
        record: Is given the weights A (B, M, N) of this block's merger, while they are read; see
            :func:`~patchmerger.mechanism.recording.recorded_weights`.
    """

    inputs: BlockInputs
    argument_names: tuple[str, ...]
    positions: Positions | None
    after_merge: bool
    num_kept_prefix_tokens: int
    num_tokens: int = 0
    num_patches: int | None = None
    num_expected_tokens: int | None = None
    sequence_first: bool = False
    grid: PatchGrid | None = None
    places_are_needed: bool = False
    sizes_are_needed: bool = False
    parts: BlockParts | None = None
    record: Callable[[Tensor], None] | None = None

    @property
    def weights_are_needed(self) -> bool:
        """Whether where merged tokens come from travels with them."""
        return self.positions == "centroid" or self.places_are_needed

    @property
    def origin_is_needed(self) -> bool:
        """Whether anything travels with merged tokens."""
        return self.weights_are_needed or self.sizes_are_needed

    def origin_of(self, x: Tensor) -> Origin:
        """That of merged tokens; see :func:`~patchmerger.mechanism.origin.origin_of`."""
        needed = {"positions": self.weights_are_needed, "sizes": self.sizes_are_needed}
        droppable = self.positions == "centroid" and not (self.places_are_needed or self.sizes_are_needed)
        return origin_of(
            x,
            lost=" and ".join(name for name, is_needed in needed.items() if is_needed),
            cure=", or insert with positions='drop'" if droppable else "",
        )

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments after the tokens, by name."""
        return {**dict(zip(self.argument_names[: len(args)], args, strict=True)), **kwargs}

    def counts(self, x: Tensor, given: dict[str, Any]) -> set[int]:
        """The numbers of tokens before the merge, as far as they are known, with and without the prefix tokens."""
        if not self.after_merge:
            tokens = x.shape[0 if self.sequence_first else 1]
            # Traced for images of any size, the number is a symbol.
            return {tokens, tokens - self.num_kept_prefix_tokens} if isinstance(tokens, int) else set()
        table = None if self.inputs.rope is None else self.inputs.rope.table(given)
        table = table[0] if isinstance(table, tuple) else table
        patches = self.num_patches if not isinstance(table, Tensor) else table.shape[-2]
        return {patches, patches + self.num_kept_prefix_tokens} if isinstance(patches, int) else set()


class LaterBlock(Subclass):
    """A block after a merge: it is given the positions of merged tokens, and no mask or bias of those before."""

    merge_state: MergeState

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the host's block, (B, P + M, D) → (B, P + M, D)."""
        return self.attend(x, args, kwargs)[0]

    def attend(
        self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], needs: tuple[str, ...] | None = None
    ) -> tuple[Any, Seen | None]:
        """What the host's block gives, or only its attention, with what merged tokens are given; and what that saw.

        ``args`` and ``kwargs`` are of the call after the tokens x, (B, P + N, D). ``needs`` is ``None`` for the whole
        block; what a reducer must know of the attention, to leave out the MLP.
        """
        state = self.merge_state
        given = state.named(args, kwargs)
        state.inputs.refuse_unknown(given, state.counts(x, given))
        if not state.after_merge:
            return self._run_host(x, args, kwargs, None, needs)
        merged = state.inputs.without_places(given)
        if not state.origin_is_needed:
            return self._run_host(x, (), {**given, **merged}, None, needs)
        origin = state.origin_of(x)
        if state.weights_are_needed and origin.weights is None:
            merged = {}  # they are still the patches, each in its place
        elif state.positions == "centroid":
            origin = origin.turned(state.inputs.rope, given)
        output, seen = self._run_host(x, (), {**given, **merged, **origin.rope_arguments}, origin.bias(x), needs)
        _tokens(output).patchmerger_origin = origin  # type: ignore[attr-defined]
        return output, seen

    def _run_host(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        bias: Tensor | None,
        needs: tuple[str, ...] | None,
    ) -> tuple[Any, Seen | None]:
        if bias is None and needs is None:
            return super().forward(x, *args, **kwargs), None  # type: ignore[misc]
        parts = cast(BlockParts, self.merge_state.parts)
        only = needs is not None
        return parts.run(cast(nn.Module, self), x, args, kwargs, bias=bias, needs=needs or (), only_attention=only)


class MergingBlock(LaterBlock):
    """A block that merges: the host's own, then its child ``merger``, (B, N, D) → (B, M, D), on what comes out.

    A merger that works inside a block stands between its attention and its MLP.
    """

    merger: nn.Module

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(B, P + N, D) → (B, P + M, D), for P kept prefix tokens."""
        state = self.merge_state
        grid = None if state.grid is None else state.grid.at(x)
        if self._changes_nothing(x):
            output = self.attend(x, args, kwargs)[0]
            if state.record is not None:
                state.record(torch.eye(state.num_tokens, device=x.device).expand(x.shape[0], -1, -1))
            if state.origin_is_needed and not state.after_merge:
                patches = _tokens(output)[:, state.num_kept_prefix_tokens :]
                places = None if grid is None else grid.places(patches)
                _tokens(output).patchmerger_origin = Origin(places=places)  # type: ignore[attr-defined]
            return output
        if not works_inside(self.merger):
            return self.merge(self.attend(x, args, kwargs)[0], args, kwargs, grid=grid)
        if is_traced(x):
            raise TypeError(
                f"a merger that works inside of a block ({type(self.merger).__name__}) cannot be traced symbolically "
                "(torch.fx, feature extractors made of it): use torch.export.export, torch.jit.trace or a forward hook"
            )
        attended, seen = self.attend(x, args, kwargs, needs_of(self.merger))
        merged = _tokens(self.merge(attended, args, kwargs, seen=seen, grid=grid))
        output = cast(BlockParts, state.parts).run_mlp(cast(nn.Module, self), merged, args, kwargs)
        if state.origin_is_needed:
            _tokens(output).patchmerger_origin = state.origin_of(merged)  # type: ignore[attr-defined]
        return output

    def _changes_nothing(self, x: Tensor) -> bool:
        """Whether as many tokens come as go on, which the merger leaves as they are."""
        state = self.merge_state
        if not getattr(self.merger, "keeps_all", False) or state.inputs.padding is not None or is_traced(x):
            return False
        return x.shape[0 if state.sequence_first else 1] == state.num_kept_prefix_tokens + state.num_tokens

    def merge(
        self,
        output: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seen: Seen | None = None,
        grid: PatchGrid | None = None,
    ) -> Any:
        """Merge what the host's own block gave when it was called with these arguments after the tokens.

        ``seen`` is what its attention saw, for a merger that works inside the block; ``grid`` where its patches are, by
        default as the host said last.
        """
        grid = grid or self.merge_state.grid
        state, prefix = self.merge_state, self.merge_state.num_kept_prefix_tokens
        given = _tokens(output)
        x = given.transpose(0, 1) if state.sequence_first else given  # (B, P + N, D)
        if state.num_expected_tokens is not None and not is_traced(x) and x.shape[1] != state.num_expected_tokens:
            raise _other_number(x, state.num_expected_tokens)
        patches = x[:, prefix:] if prefix else x  # (B, N, D)
        mask = None if state.after_merge else state.inputs.real_tokens(state.named(args, kwargs), prefix)
        before = state.origin_of(given) if state.after_merge and state.origin_is_needed else None
        places = grid.places(patches) if grid is not None else None if before is None else before.places
        arguments: dict[str, Any] = {} if mask is None else {"mask": mask}
        needs = needs_of(self.merger)
        if "positions" in needs:
            arguments["positions"] = places
        if "sizes" in needs:
            arguments["sizes"] = None if before is None else before.sizes
        if seen is not None:
            arguments |= seen.given(needs, prefix)
        merged, weights, sizes = self._reduce(patches, arguments)
        origin = None
        if state.record is not None and weights is not None:
            state.record(weights)
        if state.origin_is_needed:
            origin = Origin(weights, sizes)
            if weights is not None and before is not None and before.weights is not None:
                origin.weights = weights @ before.weights
            if weights is not None and places is not None:
                origin.places = weights @ places.to(weights.dtype)  # (B, M, 2)
        if prefix:
            merged = torch.cat((x[:, :prefix], merged), dim=1)  # (B, P + M, D)
        if state.sequence_first:
            merged = merged.transpose(0, 1).contiguous()
        if origin is not None:
            merged.patchmerger_origin = origin  # type: ignore[attr-defined]
        return (merged, *output[1:]) if isinstance(output, tuple) else merged

    def _reduce(self, patches: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Merged tokens (B, M, D), their weights A (B, M, N) with rows that sum to 1, and their sizes (B, M)."""
        state = self.merge_state
        wanted = {"return_weights": True} if state.weights_are_needed or state.record is not None else {}
        sizes = weights = None
        if getattr(self.merger, "gives_sizes", False):
            merged, weights, sizes = self.merger(patches, return_sizes=True, **wanted, **arguments)
        elif wanted:
            merged, weights = self.merger(patches, **wanted, **arguments)
        else:
            merged = self.merger(patches, **arguments)  # (B, M, D)
        if weights is not None and not getattr(self.merger, "sums_to_one", True):
            weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        return merged, weights, sizes


def needs_of(reducer: nn.Module) -> tuple[str, ...]:
    """What the ``forward`` of a reducer must be given besides the tokens, by keyword."""
    needs: tuple[str, ...] = getattr(reducer, "needs", ())
    return needs


def works_inside(reducer: nn.Module) -> bool:
    """Whether a reducer works between the attention and the MLP of its block, and not after the block."""
    return bool(getattr(reducer, "inside_block", False))


def is_merging(block: nn.Module) -> TypeGuard[MergingBlock]:
    """Whether tokens are merged after ``block``."""
    return isinstance(block, MergingBlock)


def any_centroid(blocks: Iterable[nn.Module]) -> bool:
    """Whether merged tokens have the centroid of their patches in one of ``blocks``."""
    return any(isinstance(block, LaterBlock) and block.merge_state.positions == "centroid" for block in blocks)


def _tokens(output: Any) -> Tensor:
    """The tokens in what a block gives: itself, or the first of a tuple."""
    x = output[0] if isinstance(output, tuple) and output else output
    if is_traced(x):
        return cast(Tensor, x)
    if not isinstance(x, Tensor) or x.ndim != 3:
        given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"a block must give tokens (B, N, D), or a tuple that begins with them, and not {given}")
    return x


def _other_number(x: Tensor, expected: int | None) -> ValueError:
    return ValueError(
        f"tokens {tuple(x.shape)} came to the merger, but by the description of its model they are (B, {expected}, D): "
        "mend num_prefix_tokens or num_patches of its Host, or leave num_patches out where their number changes"
    )
