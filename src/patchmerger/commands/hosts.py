"""``patchmerger hosts``: which models of timm, transformers and torchvision take a merger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from patchmerger.commands.shared_options import FileOptions


@dataclass(frozen=True)
class Command(FileOptions):
    """Find out which architectures take a merger.

    Answers at once from the census that comes with patchmerger, where that knows the name. With --fresh true or --out,
    each architecture of the installed libraries is built on the meta device, which holds no weights, and run with
    mergers of two sizes; which tokens arrive at its blocks is observed. All take some ten minutes.

    Args:
        library: "timm", "transformers", "torchvision", or "all".
        filter: Only architectures of this name; "vit_*" and the like take many, and "*dinov3*" finds them by a part.
        fresh: Try them now, with the installed versions.
    """

    library: Literal["all", "timm", "transformers", "torchvision"] = "all"
    filter: str = "*"
    fresh: bool = False

    def run(self, command: str) -> int:
        """Show what was found; the status is 1 where something failed."""
        from patchmerger.census.census import shipped_census
        from patchmerger.reports.hosts import show

        names = self.filter != "*"
        if not self.fresh and self.out is None:
            known = shipped_census().matching(self.library, self.filter)
            if known.findings:
                return show(known, names=names, again="--fresh true")
        from patchmerger.census.survey import take_census

        census = take_census(
            library=self.library, filter=self.filter, out=self.out, overwrite=self.overwrite, command=command
        )
        return show(census, names=names)
