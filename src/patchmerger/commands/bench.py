"""``patchmerger bench``: measured speed with and without a merger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchmerger.speed.settings import Against, BenchSettings, Compile, Mode, Precision


@dataclass(frozen=True)
class Command:
    """Measure how much faster Vision Transformers are with a merger than without.

    Timm's models have random weights and all run on random images, for speed does not depend on them. In each row the
    models are timed in turn, so that a noisy machine slows all alike; the result is the median of the ratios within
    the rounds. Beside it stand the speed-up that FLOPs predict and the one that a roofline allows, with the peak rates
    of the device measured first. A row that runs out of memory says so, and the others go on.

    Args:
        models: Timm architectures, such as vit_small_patch16_224, folders of saved models or runs, safetensors files.
            A saved model that merges is measured against itself without its mergers.
        architecture: For safetensors files, timm's name of the architecture.
        num_tokens: Tokens that go on after the merge; a list for several mergers.
        after: Block to merge after, counted from 1; half the depth by default; a list for several mergers.
        batch_size: Images in a batch; a list for several rows.
        image_size: Height and width in pixels; the model's own by default.
        precision: Number format: float32, bf16 or fp16, or a list. Inference casts the weights, training uses
            autocast.
        mode: What to measure: inference, training or both.
        compile: Compile all models with torch.compile: true, or "frozen" for inference with constant weights, laid
            out for the device; "[false, true, frozen]" for rows of each. Training steps have no rows of "frozen".
        against: Measure another library's merged ViT of the same shape too: vit-pytorch.
        profile: Also measure where the time of a forward pass goes, part by part, not compiled.
        rounds: How often each model is timed in a row.
        warmup: Untimed steps of each model before the first round.
        device: Device, such as cpu or cuda, or a list; the accelerator by default where there is one.
        seed: Seed of the random weights, images and labels.
        out: JSON file for the result, written after each row. The same command again measures the rows that are
            missing after an interrupt (Ctrl-C).
        picture: PNG file to draw: speed-up against batch size, with the predictions of FLOPs and roofline.
        overwrite: Replace these files if they exist.
    """

    models: list[str]
    architecture: str | None = None
    num_tokens: int | list[int] = 8
    after: int | list[int] | None = None
    batch_size: int | list[int] = 16
    image_size: int | None = None
    precision: Precision | list[Precision] = "bf16"
    mode: Mode = "both"
    compile: Compile | list[Compile] = False
    against: Against | None = None
    profile: bool = False
    rounds: int = 20
    warmup: int = 3
    device: list[str] | str | None = None
    seed: int = 0
    out: Path | None = None
    picture: Path | None = None
    overwrite: bool = False

    def run(self, command: str) -> int:
        """Measure, and show the tables; the status says whether any row was measured."""
        from patchmerger.reports.speed import draw_speed, show_speed
        from patchmerger.speed.suite import bench

        settings = BenchSettings(
            architecture=self.architecture, num_tokens=self.num_tokens, after=self.after, against=self.against,
            image_size=self.image_size,
            batch_size=self.batch_size, precision=self.precision, compile=self.compile, mode=self.mode,
            profile=self.profile, rounds=self.rounds, warmup=self.warmup, device=self.device, seed=self.seed,
        )  # fmt: skip
        if self.picture is not None and self.picture.exists() and not self.overwrite:
            raise FileExistsError(f"picture ({self.picture}) exists already: take another name, or --overwrite true")
        results = bench(self.models, settings, out=self.out, overwrite=self.overwrite, command=command)
        if self.picture is not None and results["finished"]:
            draw_speed(results, self.picture)
        return show_speed(results, resumable=self.out is not None)
