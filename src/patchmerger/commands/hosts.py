"""``patchmerger hosts``: which models of timm, transformers and torchvision take a merger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Command:
    """Find out, for every architecture that the libraries name, whether it takes a merger.

    Each is built on the meta device, which holds no weights, and run with mergers of two sizes. Which tokens arrive at
    its blocks is observed, not taken from what this library knows of it. All take some ten minutes.

    Args:
        library: "timm", "transformers", "torchvision", or "all".
        filter: Only architectures of this name; "vit_*" and the like take many, and "*dinov3*" finds them by a part.
        out: JSON file to write what was found to.
        overwrite: Replace that file if it exists.
    """

    library: Literal["all", "timm", "transformers", "torchvision"] = "all"
    filter: str = "*"
    out: Path | None = None
    overwrite: bool = False

    def run(self, command: str) -> int:
        """Survey, and show what was found; the status is 1 where something failed."""
        from patchmerger.census.survey import survey
        from patchmerger.reports.census import show_census

        return show_census(survey(library=self.library, filter=self.filter, out=self.out, overwrite=self.overwrite))
