"""What a few-shot probe found: accuracies for each number of images a class, and what makes them again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import mean_sd


@dataclass(frozen=True)
class KShot:
    """Results for k images a class.

    Attributes:
        shots: Images of each class that the classifier is fitted to, k.
        accuracies: On the test images, from 0 to 1, one for each draw.
        validation_accuracies: On the validation images, likewise.
        strengths: The strength that was chosen on the validation images, likewise.
    """

    shots: int
    accuracies: tuple[float, ...]
    validation_accuracies: tuple[float, ...]
    strengths: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean test accuracy over the draws."""
        return mean_sd(self.accuracies)[0]

    @property
    def sd(self) -> float | None:
        """Sample standard deviation of the test accuracy over the draws; ``None`` for one draw."""
        return mean_sd(self.accuracies)[1] if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class FewShot:
    """Few-shot accuracies of one model on one dataset, and what is needed to measure them again.

    Attributes:
        model: The folder or name of the model.
        data: The images, in words.
        results: One for each k.
        classes: Number of classes.
        feature_dim: Features of an image, D.
        image_size: Height and width in pixels that the images were fitted to.
        images: How many were there to draw from (``"train"``), were drawn (``"drawn"``: all draws together),
            chose the strength (``"validation"``) and gave the accuracies (``"test"``).
        seed: Fixes what is held out, and the draws.
        draws: How often images were drawn.
        strengths: Those to choose from.
        seconds: Spent on the features and on the classifiers.
        environment: Device, threads and versions.
        command: The command line that asked for it, if one did.
    """

    model: str
    data: str
    results: tuple[KShot, ...]
    classes: int
    feature_dim: int
    image_size: int
    images: dict[str, int]
    seed: int
    draws: int
    strengths: tuple[float, ...]
    seconds: dict[str, float]
    environment: dict[str, Any]
    command: str | None = None

    def __getitem__(self, shots: int) -> KShot:
        """The results for one k."""
        for result in self.results:
            if result.shots == shots:
                return result
        raise KeyError(f"{shots} shots were not measured; there are {', '.join(str(r.shots) for r in self.results)}")

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        results = [{**asdict(result), "mean": result.mean, "sd": result.sd} for result in self.results]
        record: dict[str, Any] = to_json({**asdict(self), "results": results})
        return record
