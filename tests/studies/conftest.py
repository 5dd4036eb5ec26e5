"""Studies measure speed on a few images."""

from collections.abc import Iterator

import pytest

from quick_measurements import quick_measurements

MEASURING = (
    "patchmerger.studies.training_runs.measure",
    "patchmerger.studies.acceleration_study.measure",
    "patchmerger.studies.placing_study.measure",
    "patchmerger.acceleration.run.measure_speed",
)


@pytest.fixture(scope="package", autouse=True)
def on_a_few_images() -> Iterator[None]:
    with quick_measurements(*MEASURING):
        yield
