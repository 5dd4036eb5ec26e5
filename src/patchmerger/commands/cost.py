"""``patchmerger cost``: tokens, FLOPs and parameters of a ViT, block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from patchmerger.models.settings import MergeSettings


@dataclass(frozen=True)
class Command:
    """Tokens, FLOPs and parameters of a ViT, block by block, and the speed-up that they predict.

    Args:
        model: A timm architecture, such as vit_base_patch16_224, the folder of a saved model or of a run, a
            safetensors file, or "user/name" on the Hugging Face Hub.
        architecture: For a safetensors file, timm's name of the architecture.
        args: For an architecture or a safetensors file, arguments of timm.create_model.
        merge: The merger; "--merge null" for the plain model. "auto" is the merger that a saved model has, and in a
            plain one the default merger.
        image_size: Height and width of the images in pixels; the model's own if not given.
    """

    model: str
    architecture: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    merge: MergeSettings | Literal["auto"] | None = "auto"
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
