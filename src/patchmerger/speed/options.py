"""What a measurement of speed is asked for, as types; without torch, so that the command line can name them."""

from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["float32", "bf16", "fp16"]
"""The number format: inference casts the weights to it, training uses autocast."""

Compile: TypeAlias = bool | Literal["frozen"]
"""Not compiled, compiled, or compiled with frozen weights."""

Mode: TypeAlias = Literal["both", "inference", "training"]
"""Which steps are timed."""

Against: TypeAlias = Literal["vit-pytorch"]
"""Another library whose merged ViT of the same shape is timed too."""
