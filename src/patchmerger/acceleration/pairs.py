"""Whether a student can learn from a teacher, on some images: checked before any training."""

from __future__ import annotations

from torch import nn

from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.data.splits import ImageSplits
from patchmerger.hosts.example_inputs import image_size_of
from patchmerger.models.classifier import Classifier


def check_pair(
    student: nn.Module, teacher: nn.Module, images: ImageSplits, recovery: RecoverySettings, *, labels: bool
) -> None:
    """Refuse a student and a teacher that share weights, or whose images, scores or features are no pair.

    Raises:
        ValueError: So it is; or ``labels`` are not those of the student's head.
    """
    if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
        raise ValueError(
            "student and teacher share weights, so that the teacher would change with the student: insert the merger "
            "into a copy, insert(copy.deepcopy(teacher), …), for insert changes a model in place"
        )
    ours, theirs = Classifier(student), Classifier(teacher)
    size, other_size = image_size_of(student), image_size_of(teacher)
    if size != other_size:
        raise ValueError(
            f"student takes images of {size[0]} × {size[1]} pixels, teacher of {other_size[0]} × {other_size[1]}: both "
            "are given the same"
        )
    if ours.num_outputs != theirs.num_outputs:
        raise ValueError(
            f"student gives {ours.num_outputs} scores, teacher {theirs.num_outputs}: take a teacher with the same "
            "classes"
        )
    features, other_features = _features(ours), _features(theirs)
    if recovery.feature_weight and features != other_features:
        raise ValueError(
            f"recovery.feature_weight ({recovery.feature_weight:g}) compares {features} features of the student with "
            f"{other_features} of the teacher: set it to 0"
        )
    classes = len(images.class_names)
    if labels and recovery.weight_of_labels(labels) and classes != ours.num_outputs:
        raise ValueError(
            f"data has {classes} classes, but student gives {ours.num_outputs} scores: take the data that it was "
            "trained on, or leave the labels out (labels=False), so that the teacher alone guides"
        )


def _features(classifier: Classifier) -> int:
    """Pooled features that scores are made of; where no last layer is known, the scores stand for them."""
    return classifier.num_outputs if classifier.head is None else classifier.head.in_features
