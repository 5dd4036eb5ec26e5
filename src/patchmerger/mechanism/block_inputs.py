"""What a host gives its blocks besides the tokens, and what of it a block after the merge gets instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from patchmerger.mechanism.rotary import Rope
from patchmerger.mechanism.tracing import is_traced


@dataclass(frozen=True)
class BlockInputs:
    """The arguments of a host's blocks that count on N tokens.

    Arguments that are not named here are passed on as they are, unless they count on tokens: what a mask or a tensor
    with a dimension of N says of N tokens is no longer true of M.

    Attributes:
        rope: The rotary table, or ``None``.
        padding: Name of the attention mask (B, 1, queries, N) or (B, N), additive or bool, that hides padding and
            nothing else; or ``None``. Its columns say which tokens are real: the merger leaves the others out, and
            later blocks get no mask.
        bias: Name of the relative position bias that all blocks share, or ``None``.
        exported: Name of the attention mask that the host makes while ``torch.export`` traces it, though it hides
            nothing; or ``None``. A subclass of the host must refuse a user's mask, which cannot be told from it then.
    """

    rope: Rope | None = None
    padding: str | None = None
    bias: str | None = None
    exported: str | None = None

    def refuse_unknown(self, given: Mapping[str, Any], counts: Collection[Any] = ()) -> None:
        """Refuse masks and the like that cannot follow the tokens through a merge.

        They are among a block's arguments after the tokens. ``counts`` are numbers of tokens before the merge: a tensor
        with such a dimension counts on them.
        """
        known = [self.padding, self.bias, *(self.rope.arguments if self.rope else ())]
        if torch.compiler.is_exporting():
            known.append(self.exported)
        for name, value in given.items():
            if name not in known and (_is_of_tokens(name, value) or _counts_on(value, counts)):
                raise ValueError(
                    f"{name} was given to a merged model, but it speaks of the tokens before the merge; merged tokens "
                    "have no order and no padding: call the model without it"
                )

    def real_tokens(self, given: Mapping[str, Any], num_prefix: int) -> Tensor | None:
        """(B, N) bool, True = a real token, for the tokens that are merged; ``None`` where there is no padding."""
        mask = None if self.padding is None else given.get(self.padding)
        return None if mask is None else _seen_tokens(mask, cast(str, self.padding), num_prefix)

    def without_places(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What changes for a block whose tokens are merged: neither padding nor bias, and no rotation."""
        names = (self.padding, self.bias, self.exported)
        gone: dict[str, Any] = {name: None for name in names if name is not None and name in given}
        if self.rope is not None and self.rope.table(given) is not None:
            gone.update(self.rope.without(given))
        return gone


# Arguments of blocks that say something of each token, whatever their shape. Not those that transformers passes through
# all its models to the loss and to attention (TransformersKwargs: num_items_in_batch, output_attentions and so on).
_OF_TOKENS = (
    "is_causal", "position_ids", "position_embeddings", "rope", "rotary_pos_emb", "freqs_cis", "pos_embed",
    "relative_position_bias", "rel_pos_bias", "shared_rel_pos", "shared_rel_pos_bias", "bool_masked_pos",
    "cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k", "max_seqlen", "max_length_q", "max_length_k",
)  # fmt: skip


def _is_of_tokens(name: str, value: Any) -> bool:
    """Whether an argument of this name says something of each token; a proxy of symbolic tracing is not known yet."""
    if value is None or value is False or is_traced(value):
        return False
    return name in _OF_TOKENS or (name.endswith("mask") and name != "head_mask")


def _counts_on(value: Any, counts: Collection[Any]) -> bool:
    """Whether a tensor in ``value`` has a dimension of so many tokens."""
    if isinstance(value, Tensor):
        return any(size == count for size in value.shape for count in counts)
    if isinstance(value, Mapping):
        return any(_counts_on(item, counts) for item in value.values())
    return isinstance(value, list | tuple) and any(_counts_on(item, counts) for item in value)


@torch.fx.wrap  # one step of a graph that is traced symbolically, where it is open whether there is a mask
def _seen_tokens(mask: Any, name: str, num_prefix: int) -> Tensor | None:
    """(B, N) bool, True where a mask (B, 1, queries, P + N) or (B, P + N), additive or bool, hides nothing."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise ValueError(
            f"{name} ({type(mask).__name__}) must be a mask (B, N) or (B, 1, queries, N): choose another attention "
            "implementation, such as 'sdpa'"
        )
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    if mask.ndim == 4:
        seen = seen[:, 0].any(dim=-2)  # a padded token is seen by no query
    return seen[:, num_prefix:]
