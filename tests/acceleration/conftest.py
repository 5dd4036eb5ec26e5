"""Accelerations measure speed on a few images."""

from collections.abc import Iterator

import pytest

from quick_measurements import quick_measurements


@pytest.fixture(scope="package", autouse=True)
def on_a_few_images() -> Iterator[None]:
    with quick_measurements("patchmerger.acceleration.run.measure_speed"):
        yield
