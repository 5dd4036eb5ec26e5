"""The data room: sources of images read into splits, ordered, varied and batched for Lightning.

``load_images(DataSettings(...), seed=...)`` gives the images; ``ImageData`` makes batches of them for a trainer.
"""

from patchmerger.data.batches import Batch, Loader
from patchmerger.data.decoding import BadImageError, decode
from patchmerger.data.images import ImageSet
from patchmerger.data.module import ImageData
from patchmerger.data.order import RunOrder
from patchmerger.data.reading import load_images, read_images, split_images
from patchmerger.data.settings import DataSettings, Images, ImageSplits
from patchmerger.data.sources import Source, read_source
from patchmerger.data.splits import divide
from patchmerger.data.streams import ImageStream
from patchmerger.data.transforms import (
    Augmentation,
    EvalTransform,
    TrainTransform,
    Transform,
    default_augmentation,
)

__all__ = [
    "Augmentation",
    "BadImageError",
    "Batch",
    "DataSettings",
    "EvalTransform",
    "ImageData",
    "ImageSet",
    "ImageSplits",
    "ImageStream",
    "Images",
    "Loader",
    "RunOrder",
    "Source",
    "TrainTransform",
    "Transform",
    "decode",
    "default_augmentation",
    "divide",
    "load_images",
    "read_images",
    "read_source",
    "split_images",
]
