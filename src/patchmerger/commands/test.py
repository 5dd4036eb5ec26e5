"""``patchmerger test``: a saved model, evaluated on images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import DataSettings
from patchmerger.training.settings import Precision


@dataclass(frozen=True)
class Command:
    """Evaluate a saved model on the test (or validation) images.

    Args:
        model: A folder that patchmerger saved: the "model" folder of a run, or the run's own.
        data: The images; their classes must be those that the model was trained on.
        split: "test" or "validation".
        seed: The seed of the run, which fixes what was held out where the data has no split of its own.
        batch_size: Images in a batch.
        precision: "32-true", "bf16-mixed", "bf16-true" or "16-mixed".
        accelerator: "auto", "cpu", "gpu", ... as Lightning has it.
        preprocessing: How images are prepared, in place of what is known of the model.
        progress: Show a progress bar.
    """

    model: Path
    data: DataSettings = DataSettings()
    split: Literal["test", "validation"] = "test"
    seed: int = 0
    batch_size: int = 128
    precision: Precision = "32-true"
    accelerator: str = "auto"
    preprocessing: Preprocessing | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Evaluate, and show the result."""
        from patchmerger.reports.fit import show_evaluation
        from patchmerger.training.evaluation import evaluate

        result = evaluate(
            self.model, self.data, split=self.split, seed=self.seed, batch_size=self.batch_size,
            precision=self.precision, accelerator=self.accelerator, preprocessing=self.preprocessing,
            progress=self.progress, command=command,
        )  # fmt: skip
        show_evaluation(result)
        return 0
