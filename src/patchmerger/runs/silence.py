"""Libraries that keep their warnings and their logs to themselves for a while."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Within it, neither warnings nor the log of any library are shown."""
    handler, before = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(handler)  # where there is none, the first message would add one that stays
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(handler)
