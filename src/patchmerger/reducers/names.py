"""The methods by name: what each does, where it comes from and where its class is. Without torch, for settings."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

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
        path: Module and class.
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
    "patchmerger": Method(
        "PatchMerger", "learned queries, softmax mixtures", "arXiv 2202.12015", "patchmerger.merger.PatchMerger", True
    ),
    "tome": Method(
        "ToMe",
        "merges the most similar pairs, by keys",
        "arXiv 2210.09461",
        "patchmerger.reducers.tome.ToMe",
        inside=True,
    ),
    "tokenlearner": Method(
        "TokenLearner",
        "mixtures by an MLP on each token",
        "arXiv 2106.11297",
        "patchmerger.reducers.tokenlearner.TokenLearner",
        True,
    ),
    "topk": Method(
        "Top-K",
        "keeps what the class token attends to most",
        "arXiv 2308.04657",
        "patchmerger.reducers.topk.TopK",
        inside=True,
    ),
    "evit": Method(
        "EViT",
        "Top-K, and the rest fused into one",
        "arXiv 2202.07800",
        "patchmerger.reducers.evit.EViT",
        inside=True,
    ),
    "dynamicvit": Method(
        "DynamicViT",
        "keeps what a small network chooses",
        "arXiv 2106.02034",
        "patchmerger.reducers.dynamicvit.DynamicViT",
        True,
    ),
    "ats": Method(
        "ATS",
        "samples tokens by their significance",
        "arXiv 2111.15667",
        "patchmerger.reducers.ats.ATS",
        inside=True,
    ),
    "sit": Method(
        "SiT", "mixtures by an MLP on each token, sharpened", "arXiv 2111.12624", "patchmerger.reducers.sit.SiT", True
    ),
    "sinkhorn": Method(
        "Sinkhorn",
        "learned queries, balanced by optimal transport",
        "arXiv 2308.04657",
        "patchmerger.reducers.sinkhorn.Sinkhorn",
        True,
    ),
    "kmedoids": Method(
        "K-Medoids", "clusters around tokens", "arXiv 2110.03860", "patchmerger.reducers.kmedoids.KMedoids"
    ),
    "dpcknn": Method(
        "DPC-KNN", "clusters around density peaks", "arXiv 2204.08680", "patchmerger.reducers.dpcknn.DPCKNN"
    ),
    "atc": Method("ATC", "agglomerative clusters", "arXiv 2409.11923", "patchmerger.reducers.atc.ATC"),
    "fixed-l1": Method(
        "fixed ℓ1",
        "keeps what is near the centre",
        "arXiv 2308.04657",
        "patchmerger.reducers.fixed.FixedPattern",
        arguments=(("distance", "l1"),),
    ),
    "fixed-l2": Method(
        "fixed ℓ2",
        "keeps what is near the centre",
        "arXiv 2308.04657",
        "patchmerger.reducers.fixed.FixedPattern",
        arguments=(("distance", "l2"),),
    ),
    "fixed-linf": Method(
        "fixed ℓ∞",
        "keeps what is near the centre",
        "arXiv 2308.04657",
        "patchmerger.reducers.fixed.FixedPattern",
        arguments=(("distance", "linf"),),
    ),
    "random": Method("random", "keeps tokens at random", "a floor", "patchmerger.reducers.random_drop.RandomDrop"),
    "average": Method(
        "average pooling", "means of neighbours", "a floor", "patchmerger.reducers.average_pool.AveragePool"
    ),
}
"""All methods; the keys are :data:`ReducerName`."""


def placement_in_words(reducer: str, num_tokens: int, after: int) -> str:
    """Where one method merges, and to how many tokens.

    Args:
        reducer: The method.
        num_tokens: Tokens that go on.
        after: The last block that sees all tokens; a method that works inside of a block does so in the next one.

    Returns:
        "8 tokens after block 6" for PatchMerger, for others such as "ToMe to 8 tokens inside block 7".
    """
    if reducer == "patchmerger":
        return f"{num_tokens} tokens after block {after}"
    method = METHODS[reducer]
    place = f"inside block {after + 1}" if method.inside else f"after block {after}"
    return f"{method.title} to {num_tokens} tokens {place}"


def check_reducer_name(name: str, argument: str = "reducer") -> None:
    """Refuse a name that no method has.

    Args:
        name: What may be a name.
        argument: What to call it in the message.

    Raises:
        ValueError: There is no such method; the message has close names.
    """
    if name in get_args(ReducerName):
        return
    close = difflib.get_close_matches(name, METHODS, n=2)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"{argument} ({name!r}) must be one of {', '.join(map(repr, METHODS))}" + (f"; {hint}" if hint else "")
    )
