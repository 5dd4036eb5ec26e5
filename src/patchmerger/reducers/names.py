"""The methods by name: what each does, where it comes from, and its reducer made. Without torch, for settings."""

from __future__ import annotations

import difflib
import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

if TYPE_CHECKING:
    from torch import nn

    from patchmerger.reducers.reducer import Reducer

ReducerName: TypeAlias = Literal[
    "patchmerger", "tome", "tokenlearner", "topk", "evit", "dynamicvit", "ats", "sit", "sinkhorn", "kmedoids",
    "dpcknn", "atc", "fixed-l1", "fixed-l2", "fixed-linf", "random", "average",
]  # fmt: skip
"""The methods of reducing tokens that ``insert(reducer=…)`` knows by name."""


@dataclass(frozen=True)
class Method:
    """A method of reducing tokens.

    Attributes:
        title: What its authors call it.
        does: What it does, in some words.
        source: Where it is from.
        path: Module and class, below ``patchmerger``.
        learned: Whether it has parameters: put into a trained model it must be trained; others work as they are.
        arguments: What tells it from other methods of the same class.
        inside: Whether it works inside of a block, between attention and MLP, and not after it.
    """

    title: str
    does: str
    source: str
    path: str
    learned: bool = False
    arguments: tuple[tuple[str, str], ...] = ()
    inside: bool = False


METHODS: dict[str, Method] = {
    "patchmerger": Method("PatchMerger", "learned queries, softmax mixtures", "arXiv 2202.12015",
                          "merger.PatchMerger", learned=True),
    "tome": Method("ToMe", "merges the most similar pairs, by keys", "arXiv 2210.09461",
                   "reducers.tome.ToMe", inside=True),
    "tokenlearner": Method("TokenLearner", "mixtures by an MLP on each token", "arXiv 2106.11297",
                           "reducers.tokenlearner.TokenLearner", learned=True),
    "topk": Method("Top-K", "keeps what the class token attends to most", "arXiv 2308.04657",
                   "reducers.topk.TopK", inside=True),
    "evit": Method("EViT", "Top-K, and the rest fused into one", "arXiv 2202.07800",
                   "reducers.evit.EViT", inside=True),
    "dynamicvit": Method("DynamicViT", "keeps what a small network chooses", "arXiv 2106.02034",
                         "reducers.dynamicvit.DynamicViT", learned=True),
    "ats": Method("ATS", "samples tokens by their significance", "arXiv 2111.15667",
                  "reducers.ats.ATS", inside=True),
    "sit": Method("SiT", "mixtures by an MLP on each token, sharpened", "arXiv 2111.12624",
                  "reducers.sit.SiT", learned=True),
    "sinkhorn": Method("Sinkhorn", "learned queries, balanced by optimal transport", "arXiv 2308.04657",
                       "reducers.sinkhorn.Sinkhorn", learned=True),
    "kmedoids": Method("K-Medoids", "clusters around tokens", "arXiv 2110.03860", "reducers.kmedoids.KMedoids"),
    "dpcknn": Method("DPC-KNN", "clusters around density peaks", "arXiv 2204.08680", "reducers.dpcknn.DPCKNN"),
    "atc": Method("ATC", "agglomerative clusters", "arXiv 2409.11923", "reducers.atc.ATC"),
    **{
        f"fixed-{norm}": Method(f"fixed {sign}", "keeps what is near the centre", "arXiv 2308.04657",
                                "reducers.fixed.FixedPattern", arguments=(("distance", norm),))
        for norm, sign in (("l1", "ℓ1"), ("l2", "ℓ2"), ("linf", "ℓ∞"))
    },
    "random": Method("random", "keeps tokens at random", "a floor", "reducers.random_drop.RandomDrop"),
    "average": Method("average pooling", "means of neighbours", "a floor", "reducers.average_pool.AveragePool"),
}  # fmt: skip
"""All methods; the keys are :data:`ReducerName`."""


def placement_in_words(reducer: str, num_tokens: int, after: int) -> str:
    """Where a method merges: "8 tokens after block 6" for PatchMerger, "ToMe to 8 tokens inside block 7" for another.

    ``after`` is the last block that sees all tokens; a method that works inside of a block does so in the next one.
    """
    if reducer == "patchmerger":
        return f"{num_tokens} tokens after block {after}"
    method = METHODS[reducer]
    place = f"inside block {after + 1}" if method.inside else f"after block {after}"
    return f"{method.title} to {num_tokens} tokens {place}"


def check_reducer_name(name: str, argument: str = "reducer") -> None:
    """Refuse a name that no method has; the message calls it ``argument``, and has close names."""
    if name in get_args(ReducerName):
        return
    close = difflib.get_close_matches(name, METHODS, n=2)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"{argument} ({name!r}) must be one of {', '.join(map(repr, METHODS))}" + (f"; {hint}" if hint else "")
    )


def make_reducer(
    name: ReducerName,
    num_tokens: int,
    *,
    dim: int,
    num_patches: int | None = None,
    grid: tuple[int, int] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Make a reducer by the name of its method.

    Args:
        name: One of ``patchmerger.reducers.METHODS``.
        num_tokens: Tokens that go on, M.
        dim: Features of a token, D.
        num_patches: Tokens that arrive, N; ``None`` where that is open.
        grid: Rows and columns of patches; ``None`` where tokens are no grid, or images differ in size.
        **arguments: Options of the method, as its class has them.

    Raises:
        ValueError: An unknown ``name`` or option, or a value that the method cannot take.

    Example::

        reducer = make_reducer("topk", 8, dim=384)
    """
    check_reducer_name(name, "name")
    cls = reducer_class(name)
    takes = inspect.signature(cls).parameters
    unknown = sorted(arguments.keys() - takes.keys())
    if unknown:
        options = sorted(takes.keys() - {"num_tokens", "dim", "num_patches", "grid"})
        raise ValueError(f"{unknown[0]} is no option of the reducer {name!r}, which has {', '.join(options) or 'none'}")
    known = {"dim": dim, "num_patches": num_patches, "grid": grid}
    context = {key: value for key, value in known.items() if key in takes}
    return cls(num_tokens=num_tokens, **{**context, **dict(METHODS[name].arguments), **arguments})


def reducer_class(name: ReducerName) -> type[nn.Module]:
    """The class of a method."""
    module, _, cls = METHODS[name].path.rpartition(".")
    return cast("type[nn.Module]", getattr(importlib.import_module(f"patchmerger.{module}"), cls))


def method_of(reducer: nn.Module) -> ReducerName | None:
    """The name of the method of a reducer; ``None`` for one of another library or of one's own."""
    path = f"{type(reducer).__module__}.{type(reducer).__qualname__}".removeprefix("patchmerger.")
    for name, method in METHODS.items():
        if method.path == path and all(getattr(reducer, key) == value for key, value in method.arguments):
            return cast(ReducerName, name)
    return None


def saved_arguments(reducer: Reducer) -> dict[str, Any]:
    """What is kept of a reducer beside the name of its method and the tokens that it gives."""
    method = method_of(reducer)
    fixed = dict(METHODS[method].arguments) if method is not None else {}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in reducer.arguments().items()
        if key not in ("num_tokens", "dim", "num_patches", "grid") and key not in fixed
    }
