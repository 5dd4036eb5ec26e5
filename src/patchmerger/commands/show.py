"""``patchmerger show``: what a model merges, in pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from patchmerger.commands.shared_options import TrainedModelOptions
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import DataSettings
from patchmerger.maps.settings import ShowSettings
from patchmerger.runs.narrowing import narrowed


@dataclass(frozen=True)
class Command(ShowSettings, TrainedModelOptions):
    """Draw what a model merges: for each image the patches that went into each token, and those that none takes.

    Every image has a picture (PNG and SVG): the image as the model sees it, the token that takes most of each patch,
    how much of each patch is taken in all, and the map of each token with its share. Several mergers are composed back
    to the patches. Located queries have their places drawn in, methods that keep, drop or merge whole patches their
    sets. With --data, images of a dataset are drawn too, and its statistics: the mean map of each token, how many
    mixtures differ, how many patches a token takes, and the share that none takes. results.json and maps.safetensors in
    the folder hold the numbers and the maps.

    Args:
        model: The folder of a saved model or of a run, or "owner/name" on the Hub; it must have a merger.
        images: Image files; for AST .wav files of sound, or spectrograms: .npy and .npz files of floats (time,
            frequency). One that cannot be read is
            named at the end, and the exit status is 1.
        data: A dataset.
        out: The folder for the pictures.
        grid: Draw all images into one picture, a row each, with a column for each token.
        preprocessing: How images are prepared, in place of what is known of the model.
        device: Device, such as cpu or cuda; the accelerator by default where there is one.
        overwrite: Replace pictures that an earlier call made in this folder.
        progress: Show a progress bar, on a terminal.
    """

    images: list[str] = field(default_factory=list)
    data: DataSettings | None = None
    out: Path = Path("merge-maps")
    grid: bool = False
    preprocessing: Preprocessing | None = None
    device: str | None = None
    overwrite: bool = False
    progress: bool = True

    def run(self, command: str) -> int:
        """Read the maps, draw the pictures, and print the table; the status is 1 where an image cannot be read."""
        from patchmerger.maps.showing import read_shown, show
        from patchmerger.reports.show import report

        results = show(
            self.model, self.images, self.data, narrowed(self, ShowSettings), out=self.out, overwrite=self.overwrite,
            preprocessing=self.preprocessing, device=self.device, progress=self.progress, command=command,
        )  # fmt: skip
        return report(results, read_shown(self.out)[1], grid=self.grid)
