"""The oracle of SPoT: positions fitted to each image by its label, to see what placing could give."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.mechanism.modes import eval_mode
from patchmerger.placing.given import positions_given
from patchmerger.placing.in_model import positions_in
from patchmerger.runs.checks import check_count

WARNING = (
    "The oracle uses the labels of the images that it is evaluated on: it shows what placing could give at best, and "
    "is no way to classify images."
)


@dataclass(frozen=True)
class OraclePlacement:
    """What the oracle found. Its accuracy uses labels of test images: an upper bound, no method.

    Attributes:
        positions: Of the lowest loss of each image, (B, N, 2).
        initial_positions: Those of the model's own sampler, (B, N, 2).
        correct: Whether each image is classified correctly at ``positions``, (B,).
        initially_correct: The same at ``initial_positions``.
        loss: Lowest cross-entropy of each image, (B,).
        initial_loss: The same at ``initial_positions``.
        warning: What must be said beside its accuracy.
    """

    positions: Tensor = field(repr=False)
    initial_positions: Tensor = field(repr=False)
    correct: Tensor = field(repr=False)
    initially_correct: Tensor = field(repr=False)
    loss: Tensor = field(repr=False)
    initial_loss: Tensor = field(repr=False)
    warning: str = WARNING

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly at the positions found."""
        return float(self.correct.float().mean())

    @property
    def initial_accuracy(self) -> float:
        """The same at the positions of the model's own sampler."""
        return float(self.initially_correct.float().mean())

    def __str__(self) -> str:
        """Accuracy before and after, with the warning."""
        return (
            f"Oracle over {len(self.correct)} images: accuracy {100 * self.initial_accuracy:.1f}% → "
            f"{100 * self.accuracy:.1f}%, loss {float(self.initial_loss.mean()):.3f} → {float(self.loss.mean()):.3f}. "
            f"{self.warning}"
        )


def spot_oracle(
    model: nn.Module, images: Tensor, targets: Tensor, *, steps: int = 50, lr: float = 0.01
) -> OraclePlacement:
    """Move the tokens of each image to where its loss is lowest: what placing could give, **not** a way to classify.

    Adam on the positions of each image, by the gradient of the cross-entropy with its label; the model does not change,
    and one image knows nothing of another. **It uses the labels of the images that it is evaluated on**, so its
    accuracy is an upper bound for any sampler with as many tokens. arXiv 2507.01654 (SPoT-ON).

    Args:
        model: A classifier whose tokens are placed; its sampler's positions are those to begin with.
        images: (B, C, H, W), as the model takes them, on its device.
        targets: Classes, (B,).
        steps: Steps of gradient descent.
        lr: Learning rate, in shares of the image: 0.01 moves a token by about 1% of the image in a step.

    Returns:
        Positions, losses and accuracies before and after; printed, it says that it uses labels.

    Raises:
        ValueError: The tokens of ``model`` are not placed, or ``steps``, ``lr`` or ``targets`` do not fit.
    """
    check_count("steps", steps)
    if not lr > 0:
        raise ValueError(f"lr ({lr!r}) must be above 0; 0.01 is one percent of the image")
    if targets.shape != images.shape[:1] or targets.is_floating_point():
        raise ValueError(f"targets {tuple(targets.shape)} must be one class for each of the {len(images)} images")
    with eval_mode(model), torch.enable_grad():
        initial = positions_in(model, images)
        positions = initial.clone().requires_grad_()
        optimizer = torch.optim.Adam([positions], lr=lr)
        loss, right = _of_images(model, images, targets, positions)
        first = lowest = (loss.detach(), right)
        found = initial
        for _ in range(steps):
            (positions.grad,) = torch.autograd.grad(loss.sum(), positions)
            optimizer.step()
            with torch.no_grad():
                positions.clamp_(0, 1)
            loss, right = _of_images(model, images, targets, positions)
            better = loss.detach() < lowest[0]  # (B,)
            lowest = (torch.where(better, loss.detach(), lowest[0]), torch.where(better, right, lowest[1]))
            found = torch.where(better[:, None, None], positions.detach(), found)
    return OraclePlacement(found, initial, lowest[1], first[1], lowest[0], first[0])


def _of_images(model: nn.Module, images: Tensor, targets: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image, and whether it is classified correctly, both (B,)."""
    with positions_given(model, positions):
        scores = model(images).float()
    return F.cross_entropy(scores, targets, reduction="none"), scores.argmax(dim=1) == targets
