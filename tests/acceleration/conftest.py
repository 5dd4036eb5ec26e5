"""A trained model to accelerate; accelerations measure speed on a few images."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from patchmerger import save
from quick_measurements import quick_measurements
from trained_on_digits import trained_vit


@pytest.fixture(scope="package", autouse=True)
def on_a_few_images() -> Iterator[None]:
    with quick_measurements("patchmerger.acceleration.run.measure_speed"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(trained_vit(), tmp_path_factory.mktemp("models") / "digits", class_names=list("0123456789"))
