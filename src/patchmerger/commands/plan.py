"""``patchmerger plan``: where to merge for a wanted speed-up, or a budget of FLOPs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patchmerger.commands.advice import for_command_line
from patchmerger.commands.shared_options import ModelOptions
from patchmerger.mechanism.options import Positions
from patchmerger.reducers.names import ReducerName
from patchmerger.speed.settings import TimingSettings

if TYPE_CHECKING:
    from patchmerger.costs.placements import Placement


@dataclass(frozen=True)
class Command(ModelOptions):
    """Find where to merge for a wanted speed-up, or to stay within a budget of FLOPs.

    Listed are the placements that change the model least: none stands in the list to which another is preferable
    because it merges as late and keeps as many tokens. Nothing runs unless --measure asks for it.

    Args:
        speedup: Wanted speed-up, predicted by FLOPs: those of the plain model divided by those of the merged one.
            2 if neither this nor gflops is given.
        gflops: In its place a budget: GFLOPs (10⁹, a multiply-add is 2) for one image.
        mergers: One merger, or two.
        num_tokens: Numbers of tokens to choose from; by default powers of two from 8 (less where there are few
            patches) to 128.
        image_size: Pixels, one number or [height, width]; the model's own by default.
        positions: As in insert; by default what the model needs.
        reducer: The method that reduces tokens, such as "tome", "topk" or "dpcknn"; "patchmerger" by default. One that
            works inside a block does so inside of the block that is listed.
        limit: How many placements to list.
        measure: How many of the first ones to measure on this machine, beside the plain model.
        timing: How they are measured.
    """

    speedup: float | None = None
    gflops: float | None = None
    mergers: int = 1
    num_tokens: list[int] | None = None
    image_size: int | tuple[int, int] | None = None
    positions: Positions | None = None
    reducer: ReducerName = "patchmerger"
    limit: int = 10
    measure: int = 0
    timing: TimingSettings = TimingSettings(rounds=10)

    def run(self, command: str) -> int:
        """Plan, and print the table."""
        from patchmerger.acceleration.planning import plan
        from patchmerger.models.finding import find_model

        model = self.model if self.architecture is None else find_model(self.model, architecture=self.architecture)
        found = plan(
                model, speedup=self.speedup, gflops=self.gflops,
                mergers=self.mergers, num_tokens=self.num_tokens, image_size=self.image_size,
                positions=self.positions, reducer=self.reducer, limit=self.limit,
                measure=self.measure, timing=self.timing,
        )  # fmt: skip
        first = found.placements[0]
        text = str(found).replace(f"the first: {first.line}", f"the first: {self._line(first)}")
        print(for_command_line(text, ()))
        return 0

    def _line(self, placement: Placement) -> str:
        """The command line that makes it of a trained model."""
        from patchmerger.reducers.build import all_work_inside

        positions = [] if placement.positions is None else [placement.positions]
        reducer = [] if self.reducer == "patchmerger" else [self.reducer]
        whole = placement.after[0] - (1 if all_work_inside(self.reducer) else 0)  # what accelerate counts
        if len(placement.after) == 1 and whole:
            words = ["accelerate", "--model", self.model, "--after", whole]
            words += ["--num_tokens", *placement.num_tokens, *(word for p in positions for word in ("--positions", p))]
            words += [word for name in reducer for word in ("--reducer", name)]
        else:
            words = ["fit", "--init", self.model, "--merge.after", [*placement.after]]
            words += ["--merge.num_tokens", [*placement.num_tokens]]
            words += [word for p in positions for word in ("--merge.positions", p)]
            words += [word for name in reducer for word in ("--merge.reducer", name)]
        return shlex.join(["patchmerger", *map(str, words), "--data", "FOLDER"])
