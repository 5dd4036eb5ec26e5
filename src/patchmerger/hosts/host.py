"""What the library needs to know of a host model, and the error for a model that cannot take a merger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.options import RefusalKind
from patchmerger.mechanism.subclassing import Subclass, host_class


class UnsupportedModelError(ValueError):
    """The model cannot take a merger (or placed tokens); the message names its class, the reason and what would do.

    Attributes:
        kind: The class of the reason: ``"wrapped"`` (compiled, scripted, sharded, in another module), ``"changed"``
            (by another tool), ``"not one sequence"`` (hierarchical, convolutional, several streams), ``"tied to N"``
            (weights that belong to the places of tokens), ``"grid"`` (tokens are put back into a grid after the
            merge), ``"relative bias"`` (removable, by ``positions="drop"``), ``"attention"`` (a method needs to know
            what its attention sees, and it does not show that), ``"unknown"``.
        reason: The reason in words.
        way_out: What would do.
        inside: Names of the submodules that can take one, where the model only holds them: ``"visual.trunk"``, say.
    """

    def __init__(
        self,
        model: nn.Module,
        reason: str,
        way_out: str,
        kind: RefusalKind = "unknown",
        inside: Sequence[str] = (),
        cannot: str = "take a merger",
    ) -> None:
        super().__init__(f"{host_class(model).__name__} cannot {cannot}: {reason}; {way_out}")
        self.inside = tuple(inside)
        self.kind: RefusalKind = kind
        self.reason = reason
        self.way_out = way_out

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the message, so that the error survives its passage from a worker process."""
        return (type(self).__new__, (type(self), *self.args), vars(self))


@dataclass(frozen=True)
class RelativeBias:
    """Which submodule of a block (``"attn"``, say) adds a relative position bias for N tokens.

    And the subclass that takes it away, without which it would fail on M tokens.
    """

    holder: str
    subclass: type[Subclass]


@dataclass(frozen=True)
class Host:
    """Where a model keeps what a merger touches.

    Attributes:
        blocks: The transformer blocks in order; each takes the tokens (B, N, D) as its first argument and gives them,
            or a tuple that begins with them. Between two blocks there must be nothing else.
        dim: Features of a token, D.
        num_prefix_tokens: Tokens before the patches that the blocks see (class, distillation, register tokens).
        num_patches: Patch tokens of an image; ``None`` where images of several sizes are taken, or where patches are
            left out in training.
        inputs: What else the blocks are called with that counts on N tokens.
        biases: Relative position biases of each block; a merger needs ``positions="drop"`` then.
        no_centroid: Why merged tokens cannot have the centroid of their patches, where there is a rotary table, and
            what would help; or ``None``.
        prefix_is_needed: Why the tokens before the patches must stay apart, or ``None``.
        subclasses: Modules other than the blocks (the model itself, its pooling) that must know of a merge, each with
            its subclass.
        grid: Rows and columns of the patches, where tokens are the patches of a grid row by row and all images have
            one size; ``"varies"`` where a subclass of the model tells it at each forward pass; ``None`` where it is
            not known, so that located queries are refused.
        sequence_first: Whether blocks take and give tokens as (N, B, D).
        counted: Whether each forward pass is refused where other than ``num_prefix_tokens + num_patches`` tokens
            arrive at the first merger; set for registered hosts, which nobody else has tried.
        has_class_token: Whether the first prefix token is a class token; by default where there is one.
    """

    blocks: Sequence[nn.Module]
    dim: int
    num_prefix_tokens: int = 0
    num_patches: int | None = None
    inputs: BlockInputs = field(default=BlockInputs())
    biases: tuple[RelativeBias, ...] = ()
    no_centroid: str | None = None
    prefix_is_needed: str | None = None
    subclasses: Sequence[tuple[nn.Module, type[Subclass]]] = field(default=())
    grid: tuple[int, int] | Literal["varies"] | None = None
    sequence_first: bool = False
    counted: bool = False
    has_class_token: bool | None = None

    @property
    def reads_class_token(self) -> bool:
        """Whether the first token is a class token, whose attention some methods go by."""
        return self.num_prefix_tokens > 0 if self.has_class_token is None else self.has_class_token

    @property
    def num_expected_tokens(self) -> int | None:
        """Tokens that must arrive at the first merger, where they are counted."""
        return self.num_prefix_tokens + self.num_patches if self.counted and self.num_patches is not None else None


def known_blocks(
    model: nn.Module, held: Any, known: tuple[type[nn.Module], ...], library: str, *containers: type[nn.Module]
) -> list[nn.Module]:
    """The blocks in ``held``, refused where another tool wrapped or exchanged them.

    ``known`` are classes of blocks that are known to run on any number of tokens, ``containers`` what the library keeps
    them in, first what it does for this model.
    """
    if not isinstance(held, containers):
        raise UnsupportedModelError(
            model,
            f"its blocks are a {type(held).__name__}, not the nn.{containers[0].__name__} that {library} makes",
            "insert before another tool (torch.compile, say) wraps the blocks",
            "changed",
        )
    blocks: list[nn.Module] = [*cast(Any, held)]
    refuse_unusual_blocks(model, blocks, known)
    return blocks


def refuse_unusual_blocks(
    model: nn.Module, blocks: Sequence[nn.Module], known: tuple[type[nn.Module], ...] | None = None
) -> None:
    """Refuse blocks of another class than those known to run on any number of tokens, and blocks that stand twice."""
    for number, block in enumerate(blocks, start=1):
        if isinstance(block, OptimizedModule):
            raise UnsupportedModelError(
                model,
                f"block {number} is wrapped by torch.compile, which would hide the merger",
                "insert first and compile then, or compile with block.compile()",
                "changed",
            )
        if known is not None and host_class(block) not in known:
            raise UnsupportedModelError(
                model,
                f"block {number} is a {host_class(block).__name__}, not known to run on any number of tokens",
                f"supported are {', '.join(cls.__name__ for cls in known)}",
                "changed",
            )
    if len({id(block) for block in blocks}) < len(blocks):
        raise UnsupportedModelError(
            model,
            "a block stands in it more than once",
            "a merger there would merge more than once: copy the block",
            "changed",
        )
