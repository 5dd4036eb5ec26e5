"""Settings for an acceleration of seconds."""

from typing import Any

from patchmerger.acceleration.settings import PlacementSettings, QueryInitSettings, RecoverySettings


def quick(speedup=None, epochs=None, method="soft", budget=None, images=64, recovery=(), **changes) -> dict[str, Any]:
    """Settings for an acceleration of seconds."""
    place = {key: changes.pop(key) for key in ("after", "num_tokens") if key in changes}
    return {
        "placement": PlacementSettings(speedup=speedup, rounds=1, **place),
        "query_init": QueryInitSettings(method, images=images),
        "recovery": RecoverySettings(
            **{"batch_size": 64, "accelerator": "cpu", "epochs": epochs, "budget": budget, **dict(recovery)}
        ),
        "progress": False,
        **changes,
    }
