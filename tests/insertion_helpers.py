"""What tests of insertion share: all that a refusal must leave alone, and a reducer of one's own."""

import torch
from torch import Tensor, nn


def snapshot(model: nn.Module) -> tuple:
    """All that a refused insert must leave as it was."""
    classes = [(name, type(module)) for name, module in model.named_modules()]
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    return classes, attributes, {name: id(tensor) for name, tensor in model.named_parameters()}


class Strided(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :: self.step] * self.gain
