"""What an exported file says of itself, so that it can be used without the model that it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.exports.settings import Format, Precision
from patchmerger.mechanism.options import Positions
from patchmerger.placing.settings import PlacingSettings
from patchmerger.runs.serialisation import from_json, to_json

INPUT = "images"
LOGITS, PROBABILITIES, FEATURES = "logits", "probabilities", "features"
SCHEMA = 1


@dataclass(frozen=True)
class ExportedMerger:
    """A merger in an exported model.

    Attributes:
        after: The block that it stands after, counted from 1.
        num_tokens: Tokens that it gives, M.
        num_kept_prefix_tokens: Prefix tokens that it leaves as they are.
        reducer: The name of its class.
        positions: What merged tokens have in place of positions; ``None`` where the blocks know of none.
    """

    after: int
    num_tokens: int
    num_kept_prefix_tokens: int
    reducer: str
    positions: Positions | None = None


@dataclass(frozen=True)
class ExportInfo:
    """What an exported model is, what it takes and what it gives.

    Attributes:
        model: The name of the model that it was made of.
        format: The kind of file.
        precision: Number format of the weights.
        image_size: Height and width of the images, in pixels.
        channels: Of the images.
        num_classes: Outputs, the features of a model without classes included.
        dynamic_batch: Whether batches of any size are taken, or one image a call.
        with_preprocessing: Whether uint8 (B, H, W, 3) goes in and probabilities come out; otherwise normalised images
            (B, 3, H, W) go in and logits come out.
        preprocessing: How images were prepared; ``None`` where it is not known.
        class_names: One name a class; ``None`` where they are not known.
        mergers: First to last.
        placing: How tokens are placed in the image (number, sampler, window); ``None`` where they are the patches of a
            grid.
        float_layers: With int8, the layers that stayed in floating point to keep the accuracy.
        patchmerger: The version that wrote the file.
        size_step: Where images of any size are taken, what their sides must be multiples of; ``image_size`` is then
            that of the model. ``None`` where ``image_size`` is fixed.
        multi_label: Whether an image may have several classes: then a probability is the sigmoid of a logit.
        gives_features: Whether the outputs are features, of a model that has no classes.
        schema: Of this description.
    """

    model: str
    format: Format
    precision: Precision
    image_size: tuple[int, int]
    channels: int
    num_classes: int
    dynamic_batch: bool
    with_preprocessing: bool
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...] | None
    mergers: tuple[ExportedMerger, ...]
    float_layers: tuple[str, ...]
    patchmerger: str
    size_step: int | None = None
    placing: PlacingSettings | None = None
    multi_label: bool = False
    gives_features: bool = False
    schema: int = SCHEMA

    @property
    def output(self) -> str:
        """The name of what comes out."""
        return PROBABILITIES if self.with_preprocessing else FEATURES if self.gives_features else LOGITS

    def as_properties(self) -> dict[str, str]:
        """Each attribute as JSON: what ONNX and OpenVINO keep are texts."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in to_json(self).items()}


def read_info(properties: Mapping[str, Any], where: object) -> ExportInfo:
    """The description in the properties of the file ``where``; what other tools wrote beside ours is passed over.

    Raises:
        ValueError: The file was not written by ``patchmerger export``, or by a newer version.
    """
    if not {"patchmerger", "schema", "image_size"} <= properties.keys():
        raise ValueError(
            f"{where} was not written by patchmerger export: it does not say what its images and classes are"
        )
    try:
        found = {name: json.loads(properties[name]) for name in ExportInfo.__dataclass_fields__ if name in properties}
        if isinstance(found["schema"], int) and found["schema"] > SCHEMA:
            raise ValueError(f"its schema is {found['schema']}, this patchmerger knows up to {SCHEMA}: upgrade it")
        return from_json(ExportInfo, found)
    except ValueError as error:
        raise ValueError(f"{where} describes itself in a way that is not understood: {error}") from error
