"""Models of timm and transformers that cannot take a merger, each with the reason and what would do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from patchmerger.hosts.host import UnsupportedModelError
from patchmerger.mechanism.options import RefusalKind
from patchmerger.mechanism.subclassing import host_class


@dataclass(frozen=True)
class Refused:
    """Models that are refused for one reason: some ``families``, or class names that the pattern ``classes`` matches.

    Families are packages in ``timm.models`` or ``transformers.models``. What would do, the ``way_out``, is by default a
    plain Vision Transformer of their library.
    """

    kind: RefusalKind
    reason: str
    families: str = ""
    classes: str = ""
    way_out: str = ""


_PLAIN = {
    "timm": "merge in a plain Vision Transformer: timm's vit_…, deit…, eva02_…, beit…, naflexvit_… and others",
    "transformers": "merge in a plain Vision Transformer (ViT, DINOv2, DINOv3, CLIP, SigLIP and others)",
}
_SEQUENCE = (
    "a merger fits the model of its family that gives a sequence (…Model) or classifies (…ForImageClassification)"
)

_OF_TIMM = (
    Refused(
        "not one sequence",
        "it is built on convolutions over feature maps, with no one sequence of tokens through it",
        "byobnet convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet fastvit ghostnet hgnet "
        "hrnet inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout mobilenetv3 nasnet nfnet "
        "pnasnet rdnet regnet repghost repvit resnet resnetv2 rexnet selecsls senet starnet tresnet vgg vovnet "
        "xception xception_aligned",
    ),
    Refused(
        "not one sequence",
        "its stages mix convolutions and attention on maps of shrinking size",
        "cpubone csatv2 edgenext efficientformer efficientformer_v2 efficientvit_mit efficientvit_msra iformer "
        "lowformer maxxvit mobilenetv5 nextvit shvit swiftformer tiny_vit visformer",
    ),
    Refused(
        "not one sequence",
        "its stages work on grids of shrinking size, so that no one sequence goes through them",
        "coat davit efficientvim focalnet gcvit hiera hieradet_sam2 levit metaformer mvitv2 nest pit pvt_v2 sequencer "
        "swin_transformer swin_transformer_v2 swin_transformer_v2_cr twins volo",
    ),
    Refused("not one sequence", "its two branches cut the image into patches of two sizes", "crossvit"),
    Refused("not one sequence", "its blocks run two streams, of patches and of the pixels in them", "tnt"),
    Refused("tied to N", "its layers have a weight for each place of a token", "mlp_mixer"),
    Refused("grid", "its blocks convolve over the grid of patches, and attend over channels", "xcit"),
    Refused("grid", "its blocks work out a square grid from the number of tokens", "convit"),
    Refused("grid", "its blocks keep tokens as a grid (B, H, W, D) and cut it into windows", "vision_transformer_sam"),
)

# Also what is not named here, but has a vision model by its configuration.
_JOINED = Refused(
    "tied to N",
    "its language model has a place for each image token",
    way_out="merge in a model that only encodes or classifies images",
    classes=r"For(ConditionalGeneration|CausalLM|VisionText2Text)$",
)

_OF_TRANSFORMERS = (
    Refused(
        "wrapped",
        "it only wraps a model of timm",
        "timm_wrapper timm_backbone",
        way_out="insert into its .timm_model, or its ._backbone",
    ),
    Refused(
        "wrapped",
        "it holds a vision model of any class",
        "vision_text_dual_encoder",
        way_out="insert into its .vision_model",
    ),
    Refused(
        "wrapped",
        "it holds a vision model of any class",
        "vision_encoder_decoder",
        way_out="insert into its .encoder",
    ),
    Refused(
        "not one sequence",
        "it is convolutional or hierarchical, no one sequence of tokens through one list of blocks",
        "align bit clap conditional_detr convnext convnextv2 cvt d_fine dab_detr deformable_detr deimv2 detr "
        "dinat dinov3_convnext donut edgetam edgetam_video efficientloftr efficientnet florence2 focalnet glpn "
        "grounding_dino groupvit hgnet_v2 hiera levit mask2former maskformer mm_grounding_dino mobilenet_v1 "
        "mobilenet_v2 mobilevit mobilevitv2 omdet_turbo oneformer poolformer pp_doclayout_v2 pp_doclayout_v3 "
        "pp_doclayout_v4 pp_lcnet pp_lcnet_v3 pp_lcnet_v4 pp_ocrv5_mobile_det pp_ocrv5_mobile_rec pp_ocrv5_server_det "
        "pp_ocrv5_server_rec pp_ocrv6_medium_det pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec pvt pvt_v2 "
        "regnet resnet rt_detr rt_detr_v2 sam2 sam2_video segformer slanet superglue superpoint swiftformer swin "
        "swin2sr swinv2 table_transformer textnet tvp uvdoc",
    ),
    Refused(
        "not one sequence",
        "a fixed number of latents reads the image, so there are no patch tokens to merge",
        "perceiver",
    ),
    Refused("not one sequence", "text and image tokens share its blocks", "bridgetower layoutlmv3 udop vilt"),
    Refused(
        "not one sequence",
        "the patches of all images of a batch stand in one sequence, told apart by a mask or by lengths",
        "cohere_compass cosmos3_edge ernie4_5_vl_moe exaone4_5 glm4v glm4v_moe glm5_next glm_image "
        "glm_ocr hunyuan_vl inkling2 kimi_k25 lfm3_vl minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl "
        "muse_glimmer muse_spark paddleocr_vl pixtral qwen2_5_omni qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe "
        "qwen3_omni_moe qwen3_vl qwen3_vl_moe qwen4_exp video_llama_3",
    ),
    Refused("not one sequence", "its frames are encoded apart and then exchange tokens", "videoprism x_clip"),
    Refused("not one sequence", "its tiles are padded, masked and passed on from several depths", "mllama"),
    Refused(
        "grid",
        "its blocks attend in windows of a grid",
        "deepseek_ocr2 got_ocr2 lw_detr rf_detr sam sam3 sam3_lite_text sam3_tracker sam3_tracker_video "
        "sam3_video sam_hq slanext unlimited_ocr vitdet",
    ),
    Refused("grid", "its blocks attend along time and along space in turn", "timesformer"),
    Refused("grid", "its blocks compute rotary positions in a grid from the number of tokens", "vjepa2"),
    Refused(
        "grid",
        "its tokens are put back into a grid",
        "chmv2 clipseg depth_anything depth_pro dpt eomt eomt_dinov3 gemma4 llama4 owlv2 owlvit "
        "prompt_depth_anything seggpt tipsv2_dpt upernet videomt vitmatte vitpose vitpose_backbone zoedepth",
    ),
    Refused("tied to N", "it adds positions for N tokens between its blocks", "yolos"),
    Refused(
        "tied to N",
        "its rotary table has a row for the class token too, so that the rows of patches are no grid",
        "mlcd",
    ),
    Refused("tied to N", "it predicts each pixel from those before it", "imagegpt"),
    Refused(
        "grid",
        "it gives feature maps, for which tokens are put back into a grid",
        way_out=_SEQUENCE,
        classes=r"Backbone$",
    ),
    Refused(
        "grid",
        "it predicts what was masked at each place of the image",
        way_out=_SEQUENCE,
        classes=r"For(MaskedImageModeling|PreTraining)$",
    ),
    Refused(
        "grid",
        "it predicts something for each place of the image",
        way_out=_SEQUENCE,
        classes=r"For\w*(Segmentation|Detection|Estimation|Matting|SuperResolution|OpticalFlow|Prediction)$",
    ),
    _JOINED,
)

REFUSED = {"timm": _OF_TIMM, "transformers": _OF_TRANSFORMERS}


def refuse_known(model: nn.Module) -> None:
    """Refuse a model of which it is known why it cannot take a merger.

    Raises:
        UnsupportedModelError: It is known.
    """
    cls = host_class(model)
    library, _, family, *_ = [*cls.__module__.split("."), "", ""]
    for refused in REFUSED.get(library, ()):
        if family in refused.families.split() or (refused.classes and re.search(refused.classes, cls.__name__)):
            break
    else:
        if library != "transformers" or not hasattr(getattr(model, "config", None), "vision_config"):
            return
        refused = _JOINED
    raise UnsupportedModelError(model, refused.reason, refused.way_out or _PLAIN[library], refused.kind)
