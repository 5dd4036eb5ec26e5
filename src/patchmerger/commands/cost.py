"""``patchmerger cost``: tokens, FLOPs and parameters of a ViT, block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from patchmerger.commands.shared_options import ModelOptions
from patchmerger.models.settings import Merge


@dataclass(frozen=True)
class Command(ModelOptions):
    """Tokens, FLOPs and parameters of a ViT, block by block, and the speed-up that they predict.

    Args:
        args: For an architecture or a safetensors file, arguments of timm.create_model.
        merge: The merger; "--merge null" for the plain model. "auto" is the merger that a saved model has, and in a
            plain one the default merger.
        image_size: Height and width of the images in pixels; the model's own if not given.
    """

    args: dict[str, Any] = field(default_factory=dict)
    merge: Merge = "auto"
    image_size: int | None = None

    def run(self, command: str) -> int:
        """Count on the meta device, and print the table."""
        from patchmerger.costs.named_cost import cost_of

        print(
            cost_of(
                self.model, self.merge, architecture=self.architecture, args=self.args, image_size=self.image_size
            )
        )  # fmt: skip
        return 0
