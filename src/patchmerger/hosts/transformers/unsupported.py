"""transformers' models that cannot take a merger, each with the reason and what would do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from patchmerger.hosts.host import UnsupportedModelError
from patchmerger.mechanism.options import RefusalKind
from patchmerger.mechanism.subclassing import host_class


@dataclass(frozen=True)
class _Refused:
    """Models that are refused for one reason.

    Attributes:
        kind: The class of the reason.
        reason: Why they cannot take a merger.
        way_out: What would do.
        families: Their packages in ``transformers.models``, or
        classes: a pattern that their names match.
    """

    kind: RefusalKind
    reason: str
    way_out: str
    families: str = ""
    classes: str = ""


_PLAIN = "merge in a plain Vision Transformer (ViT, DINOv2, DINOv3, CLIP, SigLIP and others)"
_SEQUENCE = (
    "a merger fits the model of its family that gives a sequence (…Model) or classifies (…ForImageClassification)"
)
# Also what is not named here, but has a vision model by its configuration.
_JOINED = _Refused(
    "tied to N",
    "its language model has a place for each image token",
    "merge in a model that only encodes or classifies images",
    classes=r"For(ConditionalGeneration|CausalLM|VisionText2Text)$",
)

_REFUSED = (
    _Refused(
        "wrapped",
        "it only wraps a model of timm",
        "insert into its .timm_model, or its ._backbone",
        families="timm_wrapper timm_backbone",
    ),
    _Refused(
        "wrapped",
        "it holds a vision model of any class",
        "insert into its .vision_model",
        families="vision_text_dual_encoder",
    ),
    _Refused(
        "wrapped",
        "it holds a vision model of any class",
        "insert into its .encoder",
        families="vision_encoder_decoder",
    ),
    _Refused(
        "not one sequence",
        "it is convolutional or hierarchical, no one sequence of tokens through one list of blocks",
        _PLAIN,
        families="align bit clap conditional_detr convnext convnextv2 cvt d_fine dab_detr deformable_detr deimv2 detr "
        "dinat dinov3_convnext donut edgetam edgetam_video efficientloftr efficientnet florence2 focalnet glpn "
        "grounding_dino groupvit hgnet_v2 hiera levit mask2former maskformer mm_grounding_dino mobilenet_v1 "
        "mobilenet_v2 mobilevit mobilevitv2 omdet_turbo oneformer poolformer pp_doclayout_v2 pp_doclayout_v3 "
        "pp_doclayout_v4 pp_lcnet pp_lcnet_v3 pp_lcnet_v4 pp_ocrv5_mobile_det pp_ocrv5_mobile_rec pp_ocrv5_server_det "
        "pp_ocrv5_server_rec pp_ocrv6_medium_det pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec pvt pvt_v2 "
        "regnet resnet rt_detr rt_detr_v2 sam2 sam2_video segformer slanet superglue superpoint swiftformer swin "
        "swin2sr swinv2 table_transformer textnet tvp uvdoc",
    ),
    _Refused(
        "not one sequence",
        "a fixed number of latents reads the image, so there are no patch tokens to merge",
        _PLAIN,
        families="perceiver",
    ),
    _Refused(
        "not one sequence",
        "text and image tokens share its blocks",
        _PLAIN,
        families="bridgetower layoutlmv3 udop vilt",
    ),
    _Refused(
        "not one sequence",
        "the patches of all images of a batch stand in one sequence, told apart by a mask or by lengths",
        _PLAIN,
        families="cohere_compass cosmos3_edge ernie4_5_vl_moe exaone4_5 glm4v glm4v_moe glm5_next glm_image "
        "glm_ocr hunyuan_vl inkling2 kimi_k25 lfm3_vl minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl "
        "muse_glimmer muse_spark paddleocr_vl pixtral qwen2_5_omni qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe "
        "qwen3_omni_moe qwen3_vl qwen3_vl_moe qwen4_exp video_llama_3",
    ),
    _Refused(
        "not one sequence",
        "its frames are encoded apart and then exchange tokens",
        _PLAIN,
        families="videoprism x_clip",
    ),
    _Refused(
        "not one sequence",
        "its tiles are padded, masked and passed on from several depths",
        _PLAIN,
        families="mllama",
    ),
    _Refused(
        "grid",
        "its blocks attend in windows of a grid",
        _PLAIN,
        families="deepseek_ocr2 got_ocr2 lw_detr rf_detr sam sam3 sam3_lite_text sam3_tracker sam3_tracker_video "
        "sam3_video sam_hq slanext unlimited_ocr vitdet",
    ),
    _Refused("grid", "its blocks attend along time and along space in turn", _PLAIN, families="timesformer"),
    _Refused(
        "grid",
        "its blocks compute rotary positions in a grid from the number of tokens",
        _PLAIN,
        families="vjepa2",
    ),
    _Refused(
        "grid",
        "its tokens are put back into a grid",
        _PLAIN,
        families="chmv2 clipseg depth_anything depth_pro dpt eomt eomt_dinov3 gemma4 llama4 owlv2 owlvit "
        "prompt_depth_anything seggpt tipsv2_dpt upernet videomt vitmatte vitpose vitpose_backbone zoedepth",
    ),
    _Refused(
        "tied to N",
        "it adds positions for N tokens between its blocks",
        _PLAIN,
        families="yolos",
    ),
    _Refused(
        "tied to N",
        "its rotary table has a row for the class token too, so that the rows of patches are no grid",
        _PLAIN,
        families="mlcd",
    ),
    _Refused("tied to N", "it predicts each pixel from those before it", _PLAIN, families="imagegpt"),
    _Refused(
        "grid",
        "it gives feature maps, for which tokens are put back into a grid",
        _SEQUENCE,
        classes=r"Backbone$",
    ),
    _Refused(
        "grid",
        "it predicts what was masked at each place of the image",
        _SEQUENCE,
        classes=r"For(MaskedImageModeling|PreTraining)$",
    ),
    _Refused(
        "grid",
        "it predicts something for each place of the image",
        _SEQUENCE,
        classes=r"For\w*(Segmentation|Detection|Estimation|Matting|SuperResolution|OpticalFlow|Prediction)$",
    ),
    _JOINED,
)


def refuse_known(model: nn.Module) -> None:
    """Refuse a model of transformers of which it is known why it cannot take a merger.

    Raises:
        UnsupportedModelError: It is known.
    """
    cls = host_class(model)
    family = [*cls.__module__.split("."), "", ""][2]
    for refused in _REFUSED:
        if family in refused.families.split() or (refused.classes and re.search(refused.classes, cls.__name__)):
            raise UnsupportedModelError(model, refused.reason, refused.way_out, refused.kind)
    if hasattr(getattr(model, "config", None), "vision_config"):
        raise UnsupportedModelError(model, _JOINED.reason, _JOINED.way_out, _JOINED.kind)
