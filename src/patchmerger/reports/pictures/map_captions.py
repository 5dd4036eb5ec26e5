"""Titles and notes of the pictures of merge maps, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchmerger.reports.parts.numbers import counted, model_name
from patchmerger.reports.pictures.map_pixels import Cells

MOST_TOKENS = 16
"""Tokens that have a map of their own in a picture; of more, those that lead most patches have."""


def merger_text(merger: Mapping[str, Any]) -> str:
    """What merges, where, and into how many tokens."""
    located = ", located queries" if merger["centers"] else ""
    return f"{merger['reducer']} after block {merger['after']}: {counted(merger['num_tokens'], 'token')}{located}"


def model_text(results: Mapping[str, Any]) -> str:
    """The model, the size of its images and its mergers."""
    height, width = results["image_size"]
    size = f"{height} pixels" if height == width else f"{height} × {width} pixels"
    mergers = "; then ".join(merger_text(merger) for merger in results["mergers"])
    return f"{model_name(results['model'])}, {size}, {mergers}"


def means_text(results: Mapping[str, Any], merger: Mapping[str, Any], means: Mapping[str, Any]) -> str:
    """What the maps of one merger are like over a dataset."""
    alike = "" if means["similarity"] is None else f", mean cosine of two maps {means['similarity']:.2f}"
    return (
        f"after block {merger['after']}, mean over {means['images']:,} {results['settings']['split']} images: "
        f"effective rank {means['effective_rank']:.1f} of {merger['num_tokens']}{alike}"
    )


def statistics_text(results: Mapping[str, Any]) -> str:
    """The title of the picture of means over a dataset."""
    each = zip(results["mergers"], results["statistics"], strict=True)
    return "\n".join([model_text(results), *(means_text(results, merger, means) for merger, means in each)])


def image_note(results: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """The note below the picture of one image."""
    rows, columns = image["grid"]
    more = [m for m in results["mergers"] if m["num_tokens"] > MOST_TOKENS]
    lines = [f"{rows} × {columns} patches."]
    if not all(found["sets"] for found in image["mergers"]):
        lines.append(
            "Striped: patches that no token takes. “Leads”: the share of patches of which the token takes the most; "
            "“takes”: how many patches, by the entropy of its map."
        )
        if more:
            lines.append(f"The {MOST_TOKENS} tokens that lead most are drawn.")
    else:
        lines.append("Merged patches have the mean colour of their set; white ones are dropped.")
    lines.append(_places_text(results).strip())
    if image["places"] is not None:
        lines.append(f"Dots: where {len(image['places'])} tokens were placed; each counts for the patches around it.")
    if len(results["mergers"]) > 1:
        lines.append("Later mergers are composed back to the patches.")
    return " ".join(filter(None, lines))


def _data_text(results: Mapping[str, Any]) -> str:
    """The images in words, where they are those of a dataset."""
    if results["data"] is None:
        return ""
    return f"{str(results['data']).split(':')[0]}, {results['settings']['split']} images. "


def _places_text(results: Mapping[str, Any]) -> str:
    if not any(merger["centers"] for merger in results["mergers"]):
        return ""
    return " + and ellipse: the learned place of a located query, and one width around it."


def grid_note(results: Mapping[str, Any], merger: Mapping[str, Any], tokens: Sequence[int]) -> str:
    """The note below the picture of several images."""
    placed = any(image["places"] is not None for image in results["images"])
    dots = " Dots: where tokens were placed." if placed else ""
    if not tokens:
        return f"Merged patches have the mean colour of their set; white ones are dropped.{dots}"
    some = f" The {MOST_TOKENS} tokens that lead most in the first image." if merger["num_tokens"] > MOST_TOKENS else ""
    return (
        f"{_data_text(results)}Light: the patches that go into a token; its percentage: the share of patches of which "
        f"it takes the most (“led by”). Striped: no token takes it.{some}{dots}"
    )


def statistics_note(results: Mapping[str, Any]) -> str:
    """The note below the picture of means over a dataset."""
    return (
        f"{_data_text(results)}Each map has its own scale. “Leads”: the mean share of patches of which the token takes "
        f"the most.{_places_text(results)}"
    )


def set_sizes(maps: Cells) -> str:
    """How many patches are kept, merged and dropped, of tokens that are sets of patches."""
    sizes = (maps > 0).sum(axis=(1, 2))
    dropped = int((maps.sum(axis=0) == 0).sum())
    kept, merged = int((sizes == 1).sum()), int((sizes > 1).sum())
    words = [f"{kept} kept", f"{merged} merged" if merged else "", f"{dropped} dropped" if dropped else ""]
    return ", ".join(filter(None, words))


def short_label(label: str) -> str:
    """A class name that fits beside an image: the first of several that a comma parts."""
    first = label.split(",")[0]
    return first if len(first) <= 14 else f"{first[:12]}…"
