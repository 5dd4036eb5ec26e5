"""Save and load models with their mergers: a folder with ``model.safetensors`` and a ``config.json``.

The folder is the one that the model's own library writes and reads (timm, transformers; torchvision has none), with
the mergers under one more key, ``"patchmerger"``. Nothing is ever pickled.
"""

from patchmerger.hub.loading import load
from patchmerger.hub.saved_config import SavedConfig, describe
from patchmerger.hub.saved_mergers import SavedMerger
from patchmerger.hub.saving import save
from patchmerger.hub.uploading import push_to_hub

__all__ = ["SavedConfig", "SavedMerger", "describe", "load", "push_to_hub", "save"]
