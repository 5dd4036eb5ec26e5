"""The trained plain models that a study begins with: runs of ``patchmerger fit --merge null``, with their images."""

from __future__ import annotations

from pathlib import Path

from patchmerger.acceleration.run import check_classes
from patchmerger.acceleration.teachers import Teacher, find_teacher
from patchmerger.data import ImageSplits, default_augmentation, load_images
from patchmerger.models.build import square_input
from patchmerger.runs.run_folder import RESULTS_FILE, read_settings
from patchmerger.training.fitting import native_size
from patchmerger.training.settings import FitSettings


class TrainedModel:
    """A plain model, its images, and what was said of its training.

    Args:
        folder: That of a finished run.

    Raises:
        FileNotFoundError: It is none of a finished run.
        ValueError: The model's classes are not those of the images.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / RESULTS_FILE).is_file():
            raise FileNotFoundError(f"models: {folder} has no {RESULTS_FILE}: it is no finished run of patchmerger fit")
        run = read_settings(folder, FitSettings)
        self.seed, self.data = run.seed, run.data
        self.teacher: Teacher = find_teacher(folder)
        self.augmentation = run.augmentation or default_augmentation(run.data.source)
        self.images: ImageSplits = load_images(self.data, seed=self.seed)
        check_classes(self.teacher, self.images, self.data.source)
        self.model = run.model.resolve(native_size(self.images))
        self.image_size = square_input(self.teacher.net)
