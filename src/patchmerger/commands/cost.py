"""``patchmerger cost``: tokens, FLOPs and parameters of a ViT, block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from patchmerger.models.settings import MergeSettings, ModelSettings


@dataclass(frozen=True)
class Command:
    """Tokens, FLOPs and parameters of a ViT, block by block, and the speed-up that they predict.

    Args:
        name: A timm architecture, such as vit_base_patch16_224.
        args: Arguments for timm.create_model.
        merge: The merger; "--merge null" for the plain model.
        num_classes: Outputs of the head.
        image_size: Height and width of the images in pixels; the model's own if not given.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    merge: MergeSettings | None = MergeSettings()
    num_classes: int = 1000
    image_size: int | None = None

    def run(self, command: str) -> int:
        """Count on the meta device, without weights, and print the table."""
        import torch

        from patchmerger.costs.model_cost import cost
        from patchmerger.models.build import build_model

        with torch.device("meta"):
            model = build_model(ModelSettings(self.name, self.args), self.merge, num_classes=self.num_classes)
        print(cost(model, self.image_size))
        return 0
