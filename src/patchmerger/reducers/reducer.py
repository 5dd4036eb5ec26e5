"""What all methods of reducing tokens have in common: M tokens out, what they need to know, how they are made again."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from patchmerger.runs.checks import check_count

Need: TypeAlias = Literal["positions", "keys", "class_attention", "significance", "sizes"]
"""What a reducer may be given besides the tokens, by a keyword argument of this name:

- ``positions``: where the tokens are, (N, 2) or (B, N, 2), row and column from 0 to 1; after a merge, centroids;
- ``keys``: of the block's attention, averaged over heads, before any rotation by place, (B, N, d);
- ``class_attention``: how much the class token attends to each token, averaged over heads, (B, N);
- ``significance``: class attention times the norm of the token's value, summed over heads, (B, N);
- ``sizes``: how many patches are in each token, (B, N); ``None`` where all are one.

All but positions and sizes come from the attention of the block that the reducer works in.
"""


class Reducer(nn.Module):
    """A method of getting from N tokens (B, N, D) to M tokens (B, M, D).

    A subclass has ``forward(x, mask=None, *, return_weights=False, …)``, with a keyword argument for each of its
    ``needs``. It gives Y (B, M, D) or, with ``return_weights``, the pair of Y and the weights A (B, M, N), where
    A[b, m, n] is how much of token n is in token m. A reducer without ``mask`` (B, N; True = a real token) is refused
    where batches hold padding.

    The arguments of a subclass's constructor are ``num_tokens`` and whichever it wants of ``dim`` (features of a
    token), ``num_patches`` (tokens that arrive) and ``grid`` (rows and columns of patches), then options of its own;
    each is kept as an attribute of its name, from which the reducer is made again where a model is loaded.

    Args:
        num_tokens: Tokens that go on, M.

    Attributes:
        needs: What it must be given besides the tokens.
        inside_block: Whether it works between the attention and the MLP of its block, and not after the block.
        gives_sizes: Whether later attention is proportional to the sizes of tokens: ``forward`` is called with
            ``return_sizes=True`` then, and gives (Y, A or None, sizes (B, M) or None where all are one).
        sums_to_one: Whether each row of A sums to 1.
        keeps_all: Whether it changes nothing where as many tokens arrive as go on; it is not even called then.
        needs_class_token: Whether a model must have a class token.
        learns_in_train_mode: Whether its parameters get a gradient in training mode alone.
        traces_any_number: Whether one traced program does for any N; not where N decides how many steps it takes.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    inside_block: ClassVar[bool] = False
    gives_sizes: ClassVar[bool] = False
    sums_to_one: ClassVar[bool] = True
    keeps_all: ClassVar[bool] = True
    needs_class_token: ClassVar[bool] = False
    learns_in_train_mode: ClassVar[bool] = False
    traces_any_number: ClassVar[bool] = True

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = check_count("num_tokens", num_tokens)

    def arguments(self) -> dict[str, Any]:
        """The arguments that make it again."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments().items())


def all_weights(x: Tensor) -> Tensor:
    """A, (B, N, N) in float32, of a method that changes nothing."""
    return torch.eye(x.shape[1], device=x.device).expand(x.shape[0], -1, -1)


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of ``x`` (B, N, D) at ``index`` (B, M), (B, M, D)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[-1]))


def one_hot_weights(index: Tensor, number: int) -> Tensor:
    """A, (B, M, N) in float32, of a method that keeps the tokens at ``index`` (B, M) of ``number``."""
    weights = torch.zeros(*index.shape, number, device=index.device)
    return weights.scatter(2, index[:, :, None], 1.0)
