"""Which models can take a merger: one small file for each host library says where its blocks and tokens are."""

from torch import nn

from patchmerger.hosts.host import Host, UnsupportedModelError, refuse_wrapped
from patchmerger.hosts.timm import describe_timm

__all__ = ["Host", "UnsupportedModelError", "find_host"]


def find_host(model: nn.Module) -> Host:
    """Describe a supported model: its blocks, width and tokens.

    Args:
        model: A Vision Transformer, with or without mergers.

    Raises:
        UnsupportedModelError: The model's class is not supported, or it is wrapped, scripted, compiled or
            sharded; the message names the class, the reason and what would do.
        TypeError: ``model`` is no ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    refuse_wrapped(model)
    host = describe_timm(model)
    if host is None:
        raise UnsupportedModelError(
            model,
            "it is not known to be a plain Vision Transformer (one sequence of tokens through one list of blocks)",
            "supported are timm's VisionTransformer and VisionTransformerDistilled",
        )
    return host
