"""``patchmerger patterns``: how models reduce tokens, compared."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.commands.shared_options import PictureOptions
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import DataSettings
from patchmerger.patterns.settings import PatternSettings
from patchmerger.runs.narrowing import narrowed


@dataclass(frozen=True)
class _Models:
    """What is compared.

    Args:
        models: Trained models: folders of runs or of saved models, timm architectures with weights. The first is the
            one to hold the others against, such as the plain model; of several plain ones each is held against its own
            copies.
    """

    models: list[str]


@dataclass(frozen=True)
class Command(PictureOptions, PatternSettings, _Models):
    """Compare how models reduce the tokens of the same images, and what that does to features and accuracy.

    For every two models: which patches both keep (IoU), how alike they group the patches (normalised mutual
    information), and how alike their features are (CKA, Procrustes); then how these go with the drop in accuracy, as
    rank correlations. With --reducers methods that need no training are put into copies of each plain model, so that
    one trained model is enough; of several, such as two sizes, it also says whether methods do the same in all.

    Args:
        data: The images; their classes must be those that the models know.
        batch_size: Images in a batch.
        preprocessing: How images are prepared, in place of what is known of each model.
        device: Device, such as cpu or cuda; the accelerator by default where there is one.
        picture: PNG file to draw: which patches go on in each model, and likeness of features against drop in accuracy.
        progress: Show a progress bar for each model, on a terminal.
    """

    data: DataSettings = DataSettings()
    batch_size: int = 128
    preprocessing: Preprocessing | None = None
    device: str | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Compare, and show the tables."""
        self.check_picture()

        from patchmerger.patterns.comparison import compare_patterns
        from patchmerger.reports.patterns import report

        results = compare_patterns(
            self.models, self.data, narrowed(self, PatternSettings), batch_size=self.batch_size,
            preprocessing=self.preprocessing, device=self.device, out=self.out, overwrite=self.overwrite,
            progress=self.progress, command=command,
        )  # fmt: skip
        report(results, self.picture)
        return 0
