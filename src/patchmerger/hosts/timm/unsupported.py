"""timm's models that cannot take a merger, each with the reason and what would do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from patchmerger.hosts.host import UnsupportedModelError
from patchmerger.mechanism.options import RefusalKind
from patchmerger.mechanism.subclassing import host_class

_PLAIN = "merge in a plain Vision Transformer: timm's vit_…, deit…, eva02_…, beit…, naflexvit_… and others"


@dataclass(frozen=True)
class _Refused:
    """Models that are refused for one reason.

    Attributes:
        kind: The class of the reason.
        reason: Why they cannot take a merger.
        modules: Where they are in ``timm.models``.
    """

    kind: RefusalKind
    reason: str
    modules: str


_REFUSED = (
    _Refused(
        "not one sequence",
        "it is built on convolutions over feature maps, with no one sequence of tokens through it",
        "byobnet convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet fastvit ghostnet hgnet "
        "hrnet inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout mobilenetv3 nasnet nfnet "
        "pnasnet rdnet regnet repghost repvit resnet resnetv2 rexnet selecsls senet starnet tresnet vgg vovnet "
        "xception xception_aligned",
    ),
    _Refused(
        "not one sequence",
        "its stages mix convolutions and attention on maps of shrinking size",
        "cpubone csatv2 edgenext efficientformer efficientformer_v2 efficientvit_mit efficientvit_msra iformer "
        "lowformer maxxvit mobilenetv5 nextvit shvit swiftformer tiny_vit visformer",
    ),
    _Refused(
        "not one sequence",
        "its stages work on grids of shrinking size, so that no one sequence goes through them",
        "coat davit efficientvim focalnet gcvit hiera hieradet_sam2 levit metaformer mvitv2 nest pit pvt_v2 sequencer "
        "swin_transformer swin_transformer_v2 swin_transformer_v2_cr twins volo",
    ),
    _Refused("not one sequence", "its two branches cut the image into patches of two sizes", "crossvit"),
    _Refused("not one sequence", "its blocks run two streams, of patches and of the pixels in them", "tnt"),
    _Refused("tied to N", "its layers have a weight for each place of a token", "mlp_mixer"),
    _Refused("grid", "its blocks convolve over the grid of patches, and attend over channels", "xcit"),
    _Refused("grid", "its blocks work out a square grid from the number of tokens", "convit"),
    _Refused("grid", "its blocks keep tokens as a grid (B, H, W, D) and cut it into windows", "vision_transformer_sam"),
)
UNSUPPORTED = {f"timm.models.{module}": refused for refused in _REFUSED for module in refused.modules.split()}


def refuse_known(model: nn.Module) -> None:
    """Refuse a model of timm where it is known why it cannot take a merger.

    Raises:
        UnsupportedModelError: With the reason.
    """
    refused = UNSUPPORTED.get(host_class(model).__module__)
    if refused is not None:
        raise UnsupportedModelError(model, refused.reason, _PLAIN, refused.kind)
