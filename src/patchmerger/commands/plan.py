"""``patchmerger plan``: where to merge for a wanted speed-up, or a budget of FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.mechanism.options import Positions
from patchmerger.speed.settings import Compile, Precision, TimingSettings


@dataclass(frozen=True)
class Command:
    """Find where to merge for a wanted speed-up, or to stay within a budget of FLOPs.

    Listed are the placements that change the model least: none stands in the list to which another is preferable
    because it merges as late and keeps as many tokens. Nothing runs unless --measure asks for it.

    Args:
        model: A timm architecture, the folder of a saved model or of a run, a safetensors file, or "user/name" on the
            Hugging Face Hub.
        architecture: For a safetensors file, timm's name of the architecture.
        speedup: Wanted speed-up, predicted by FLOPs: those of the plain model divided by those of the merged one.
            2 if neither this nor gflops is given.
        gflops: In its place a budget: GFLOPs (10⁹, a multiply-add is 2) for one image.
        mergers: One merger, or two.
        num_tokens: Numbers of tokens to choose from; by default powers of two from 8 (less where there are few
            patches) to 128.
        image_size: Pixels, one number or [height, width]; the model's own by default.
        positions: As in insert; by default what the model needs.
        limit: How many placements to list.
        measure: How many of the first ones to measure on this machine, beside the plain model.
        batch_size: Images in a batch, for measure.
        precision: float32, bf16 or fp16, for measure.
        compile: Compile the models with torch.compile ("frozen": with constant weights), for measure.
        rounds: How often each model is timed, for measure.
        device: Where to measure; by default where the model is.
        seed: Of the random weights and images, for measure.
    """

    model: str
    architecture: str | None = None
    speedup: float | None = None
    gflops: float | None = None
    mergers: int = 1
    num_tokens: list[int] | None = None
    image_size: int | tuple[int, int] | None = None
    positions: Positions | None = None
    limit: int = 10
    measure: int = 0
    batch_size: int = 16
    precision: Precision = "float32"
    compile: Compile = False
    rounds: int = 10
    device: str | None = None
    seed: int = 0

    def run(self, command: str) -> int:
        """Plan, and print the table."""
        from patchmerger.costs.planning import plan

        timing = TimingSettings(
            batch_size=self.batch_size, precision=self.precision, compile=self.compile, rounds=self.rounds,
            device=self.device, seed=self.seed,
        )  # fmt: skip
        print(
            plan(
                self.model, architecture=self.architecture, speedup=self.speedup, gflops=self.gflops,
                mergers=self.mergers,
                num_tokens=self.num_tokens, image_size=self.image_size, positions=self.positions, limit=self.limit,
                measure=self.measure, timing=timing,
            )
        )  # fmt: skip
        return 0
