"""``patchmerger demo``: a plain ViT trained on digits, made faster, both in one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """Train a plain ViT on handwritten digits, make it faster, and hold both side by side: three minutes on two cores.

    Args:
        seeds: How often; one split of the digits by default, with intervals over its test images.
        out: The folder of the results.
        progress: Say what is done, with bars on a terminal.
    """

    seeds: int = 1
    out: Path = Path("runs/demo")
    progress: bool = True

    def run(self, command: str) -> int:
        """Train, accelerate, and show the result."""
        from patchmerger.reports.demo import report
        from patchmerger.studies.demonstration import demo

        report(demo(seeds=self.seeds, out=self.out, progress=self.progress, command=command))
        return 0
