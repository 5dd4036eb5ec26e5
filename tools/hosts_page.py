"""The page of supported models, made from the findings of a census: ``python -m tools.hosts_page``."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import shorten

from patchmerger.census.census import Census, Family, Refused, read_census
from patchmerger.census.check import NUM_TOKENS
from patchmerger.runs.files import write_text
from tools.markdown import given_paths, markdown_table

RESULTS, PAGE = Path("results/hosts.json"), Path("docs/hosts.md")

# So many names of a family stand in its row.
_FEW = 6

# Names that people look for, and what their architectures are called.
KNOWN = {
    "ViT": "vit_base_patch16_224",
    "hybrids with a ResNet stem": "vit_*_r??_s??_*",
    "DeiT": "deit_*",
    "DeiT-3": "deit3_*",
    "DINOv2": "*_dinov2",
    "DINOv2 with registers": "*_reg4_dinov2",
    "DINOv3": "*_dinov3",
    "CLIP": "vit_*_clip_*",
    "SigLIP, SigLIP 2": "*_siglip_*",
    "MobileCLIP": "vit_*_mci_*",
    "AIMv2": "aimv2_*",
    "BEiT": "beit_*",
    "BEiT v2": "beitv2_*",
    "BEiT-3": "beit3_*",
    "EVA": "eva_*",
    "EVA-02": "eva02_*",
    "Perception Encoder": "vit_pe_*",
    "InternViT": "vit_intern*",
    "RADIO": "*_radio_*",
    "TIPSv2": "*_tipsv2",
    "Sapiens 2": "*_sapiens2",
    "LingBot": "*_lingbot",
    "ViTamin": "vitamin_*",
    "FlexiViT": "flexivit_*",
    "NaFlexViT": "naflexvit_base_patch16_gap",
    "ViT with RoPE": "vit_*_rope_*",
    "ViT with relative positions": "vit_relpos_*",
}

KINDS = {
    "not one sequence": "No one sequence of tokens through one list of blocks",
    "grid": "Tokens are put back into a grid",
    "tied to N": "Weights or positions that belong to the places of the tokens",
    "relative bias": "A relative position bias",
    "two merges": "Tokens are merged already",
    "wrapped": "A model inside another one",
    "changed": "Changed by another tool",
    "unknown": "Not known",
}

_INTRO = """\
# Which models take a merger

<!-- Made by `make census` from results/hosts.json; what is written here by hand is lost. -->

Every architecture that timm names, every image encoder and classifier that transformers maps (with its vision towers
and spectrogram classifiers), and torchvision's classifiers: {total:,} in all. Each was built from its library's
defaults and tried. **{answered}**

{counts}

*Merged* is observed and not believed from a description: with mergers of {sizes} tokens, each block after the merger
got that many tokens and the prefix; outputs kept their shapes; the kept prefix tokens are the same for two different
images, and no others are; as many tokens follow them as the patch embedding cuts patches; and `remove`
gave the model back. *Refused* is `UnsupportedModelError`: nothing was changed. *Not buildable* are those that their own
library does not make from its defaults.

One model, or many, on your versions:

```console
$ patchmerger hosts --filter vit_base_patch16_224
$ patchmerger hosts --library transformers --filter "*dinov3*"
```

A model of your own: [describe it in ten lines](own-model.md).

## Merged

`positions` is what [`insert`](positions.md) does about the positions of tokens in the blocks after a merger. **–**: the
blocks are given none. **centroid**: rotary positions (RoPE); each merged token gets the centroid of its patches, or
none with `positions="drop"`. **drop**: a relative position bias, which merged tokens cannot have; refused unless
`positions="drop"` asks to leave it out after the merger. *Prefix* is the number of tokens before the patches.
"""

_REFUSED = """\
## Refused

The error names the class, the reason and what would do, and its `kind` is the heading in italics.
"""


def render(census: Census) -> str:
    """The page, in Markdown.

    Args:
        census: What was found.
    """
    parts = [
        _INTRO.format(
            total=len(census.findings),
            answered=_answered(census),
            counts=_counts(census),
            sizes=" and ".join(map(str, NUM_TOKENS)),
        )
    ]
    for library in census.counts:
        families = [family for family in census.families if family.library == library]
        parts.append(_merged(f"{library} {census.versions.get(library, '')}".strip(), families))
    parts.append(_REFUSED)
    kinds = dict.fromkeys(group.kind for group in census.refused)
    parts.extend(_refused(kind, [group for group in census.refused if group.kind == kind]) for kind in kinds)
    parts.append(_others(census))
    versions = ", ".join(f"{name} {number}" for name, number in census.versions.items())
    parts.append(f"## Versions\n\n`{census.command}` with {versions}.\n")
    return "\n".join(part for part in parts if part)


def _answered(census: Census) -> str:
    if census.failures:
        return f"{len(census.failures)} failed: neither merged nor refused."
    return "None failed, none was changed in silence."


def _counts(census: Census) -> str:
    statuses = ("merged", "refused", "not buildable", *(["failed"] if census.failures else []))
    rows = [
        [f"{library} {census.versions.get(library, '')}".strip(), *(f"{counts.get(s, 0):,}" for s in statuses)]
        for library, counts in census.counts.items()
    ]
    totals = [sum(counts.get(status, 0) for counts in census.counts.values()) for status in statuses]
    rows.append(["**all**", *(f"**{total:,}**" for total in totals)])
    return markdown_table(["", *statuses], rows, numbers=range(1, 5))


def _merged(title: str, families: Sequence[Family]) -> str:
    rows, names = [], []
    for family in families:
        positions = f"{family.positions or '–'}{'' if family.by_default else ', to be asked for'}"
        count, prefixes = str(len(family.members)), ", ".join(map(str, family.prefixes))
        listed = ", ".join(f"`{finding.name}`" for finding in family.members)
        if len(family.members) > _FEW:
            names.append(f"**{family.name}**: {listed}\n")
            listed = _among(family)
        rows.append([f"`{family.name}`", count, prefixes, positions, listed])
    table = markdown_table(
        ["family", "architectures", "prefix", "positions", "which, or among them"], rows, numbers=(1,)
    )
    details = ["<details><summary>The long families by name</summary>\n", *names, "</details>\n"] if names else []
    return "\n".join([f"### {title}\n", f"{table}\n", *details])


def _among(family: Family) -> str:
    names = [finding.name for finding in family.members]
    known = [label for label, pattern in KNOWN.items() if any(fnmatchcase(name, pattern) for name in names)]
    return ", ".join(known or [f"`{name}`" for name in names[:_FEW]]) + ("" if known else ", …")


def _refused(kind: str, groups: Sequence[Refused]) -> str:
    total = sum(len(group.members) for group in groups)
    rows = []
    for group in groups:
        classes = "; ".join(f"{library}: {', '.join(names)}" for library, names in group.classes.items())
        rows.append([group.reason, group.way_out, str(len(group.members)), classes])
    table = markdown_table(["reason", "what would do", "architectures", "classes"], rows, numbers=(2,))
    return f"### {KINDS.get(kind, kind)} ({total:,}, *{kind}*)\n\n{table}\n"


def _others(census: Census) -> str:
    text = ""
    for status, title in (("failed", "Failed"), ("not buildable", "Not buildable from its defaults")):
        limit = 120 if status == "not buildable" else 300
        reasons = {f: shorten(f.reason or "", limit, placeholder=" …") for f in census.of_status(status)}
        rows = [[f"`{finding.name}` ({finding.library})", reason] for finding, reason in reasons.items()]
        if rows:
            text += f"## {title}\n\n{markdown_table(['architecture', 'error'], rows, ())}\n\n"
    return text.rstrip("\n") + "\n" if text else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the page; the census and the page may be given."""
    results, page = given_paths(arguments, RESULTS, PAGE)
    write_text(page, render(read_census(results)))


if __name__ == "__main__":
    main()
