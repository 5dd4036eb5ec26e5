"""OpenVINO and NNCF, imported without their telemetry: an export or a prediction sends nothing anywhere."""

from __future__ import annotations

import sys
from typing import Any

from patchmerger.runs.extras import import_extra

_TELEMETRY = "openvino_telemetry"


def import_intel(module: str, what_for: str) -> Any:
    """Import OpenVINO or NNCF as where ``openvino_telemetry`` is not installed, which both allow for.

    It would send what is converted, by processes that it forks, whenever one of them is imported or converts. Where the
    caller has imported it already, it stays as it is.

    Args:
        module: "openvino" or "nncf".
        what_for: What needs it, as the message begins.

    Raises:
        MissingExtraError: The library is not installed.
    """
    if _TELEMETRY in sys.modules:
        return import_extra(module, "export", what_for)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return import_extra(module, "export", what_for)
    finally:
        del sys.modules[_TELEMETRY]
