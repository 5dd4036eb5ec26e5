"""ImageNet's class names, for models that are trained on it and name no classes."""

from __future__ import annotations

from collections import Counter

from timm.data import ImageNetInfo

IMAGENET_CLASSES = 1000


def imagenet_class_names() -> tuple[str, ...]:
    """One short name for each of ImageNet's 1,000 classes, all different, in the order that all libraries use.

    A name is the first of the WordNet synset ("tench" of "tench, Tinca tinca"); where two are alike all of its words
    are taken, and where these are alike too the number of the synset follows ("crane (n02012849)").
    """
    info = ImageNetInfo("imagenet-1k")
    whole, synsets = info.label_descriptions(), info.label_names()
    first = [name.split(",")[0] for name in whole]
    short = [words if twice else name for name, words, twice in zip(first, whole, _twice(first), strict=True)]
    return tuple(
        f"{name} ({synset})" if twice else name
        for name, synset, twice in zip(short, synsets, _twice(short), strict=True)
    )


def _twice(names: list[str]) -> list[bool]:
    """Of each name, whether another one is the same."""
    counts = Counter(names)
    return [counts[name] > 1 for name in names]
