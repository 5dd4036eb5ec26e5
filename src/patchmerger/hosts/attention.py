"""How the attentions of timm, transformers and torchvision are called with a bias, and what they see on the way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.utils.hooks import BackwardHook

from patchmerger.mechanism.block_parts import BlockParts, Seen
from patchmerger.mechanism.stand_in import Recorder, StandIn
from patchmerger.mechanism.subclassing import has_own_forward, host_class

# Under this name transformers knows our attention function, which lets another do the work and notes what it was given.
_IMPLEMENTATION = "patchmerger"

TOKENS_ALONE = "choose a reducer that needs the tokens alone, such as 'patchmerger', 'average' or 'dpcknn'"
"""What would do where an attention cannot be seen."""


def block_parts(block: nn.Module) -> BlockParts | None:
    """The two branches of a block of a known kind; ``None`` for others."""
    library = host_class(block).__module__.split(".")[0]
    if library == "timm" and type(getattr(block, "attn", None)) in (Attention, AttentionRope, EvaAttention):
        return BlockParts("attn", "mlp", attend_timm) if hasattr(block, "mlp") else None
    if library == "torchvision" and isinstance(getattr(block, "self_attention", None), nn.MultiheadAttention):
        return BlockParts("self_attention", "mlp", attend_torch, gives_pair=True)
    if library == "transformers" and hasattr(block, "mlp"):
        names = [name for name in ("attention", "self_attn") if hasattr(getattr(block, name, None), "config")]
        if names and _asks_for_an_implementation(getattr(block, names[0])):
            _register()
            return BlockParts(names[0], "mlp", attend_transformers, gives_pair=True)
    return None


def attend_timm(
    attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], bias: Tensor | None, needs: Sequence[str]
) -> tuple[Any, Seen | None]:
    """Call timm's ``Attention``, ``AttentionRope`` or ``EvaAttention``."""
    if bias is not None:
        mask = kwargs.get("attn_mask")
        kwargs = {**kwargs, "attn_mask": bias if mask is None else mask + bias}
    if not needs:
        return attention(*args, **kwargs), None
    args, kwargs = _prehooked(attention, args, kwargs)
    query, key, projected = Recorder(attention.q_norm), Recorder(attention.k_norm), Recorder(attention.qkv)
    value = Recorder(getattr(attention, "v_proj", None))
    exchanged = {"q_norm": query, "k_norm": key, "v_proj": value}
    plainly_projected = attention.qkv is not None and not isinstance(attention, EvaAttention)
    if plainly_projected:
        exchanged["qkv"] = projected
    output = _forward(attention, StandIn(attention, exchanged), args, kwargs)
    values = None
    if "significance" in needs:
        if plainly_projected:
            flat = projected.output.chunk(3, dim=-1)[2]
        elif attention.qkv is None:
            flat = value.output
        else:
            flat = F.linear(args[0], attention.qkv.weight.chunk(3)[2], attention.v_bias)
        values = _heads(flat, key.output.shape[1])
    rope = kwargs.get("rope")
    keys = key.output
    if rope is not None:
        prefix = attention.num_prefix_tokens
        half = getattr(attention, "rotate_half", False)
        keys = torch.cat((keys[:, :, :prefix], apply_rot_embed_cat(keys[:, :, prefix:], rope, half=half)), dim=2)
    groups = getattr(attention, "num_kv_groups", 1)
    if groups > 1:
        keys = keys.repeat_interleave(groups, dim=1)
        values = None if values is None else values.repeat_interleave(groups, dim=1)
    return output, Seen(query.output, keys, attention.scale, key.output, values, bias)


def attend_transformers(
    attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], bias: Tensor | None, needs: Sequence[str]
) -> tuple[Any, Seen | None]:
    """Call an attention of transformers that asks for its implementation by name, as all of them do since 5.0."""
    if bias is None and not needs:
        return attention(*args, **kwargs), None
    implementation = attention.config._attn_implementation
    if implementation not in ("eager", "sdpa"):
        raise ValueError(
            f"attn_implementation ({implementation!r}) takes no bias and shows no keys, which this reducer needs: "
            "choose 'sdpa' or 'eager'"
        )
    args, kwargs = _prehooked(attention, args, kwargs)
    note = _Note(attention, implementation, bias)
    exchanged: dict[str, Any] = {
        "config": StandIn(attention.config, {"_attn_implementation": _IMPLEMENTATION}),
        "patchmerger_note": note,
    }
    content = None
    if kwargs.get("position_embeddings") is not None and hasattr(attention, "k_proj"):
        content = exchanged["k_proj"] = Recorder(attention.k_proj)
    output = _forward(attention, StandIn(attention, exchanged), args, kwargs)
    if not needs or note.key is None:
        return output, None
    keys = note.key if content is None else _heads(content.output, note.key.shape[1])
    return output, Seen(note.query, note.key, note.scale, keys, note.value, bias)


class _Note:
    """What passes between an attention of transformers and our attention function, in one call."""

    def __init__(self, attention: Any, implementation: str, bias: Tensor | None) -> None:
        self.attention, self.implementation, self.bias = attention, implementation, bias
        self.query: Any = None
        self.key: Any = None
        self.value: Any = None
        self.scale = 1.0


def _note_and_attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """An attention function of transformers: notes what it is given, adds the bias, and lets the chosen one work."""
    note = module.patchmerger_note
    note.query, note.key, note.value = query, key, value
    scaling = kwargs.get("scaling")
    note.scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if note.bias is not None:
        bias = note.bias.to(query.dtype)
        attention_mask = bias if attention_mask is None else attention_mask + bias
    file = sys.modules[host_class(note.attention).__module__]
    function = file.ALL_ATTENTION_FUNCTIONS.get_interface(note.implementation, file.eager_attention_forward)
    return function(note.attention, query, key, value, attention_mask, **kwargs)


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_IMPLEMENTATION, _note_and_attend)


def _asks_for_an_implementation(attention: nn.Module) -> bool:
    file = sys.modules[host_class(attention).__module__]
    return hasattr(file, "ALL_ATTENTION_FUNCTIONS") and hasattr(file, "eager_attention_forward")


if "transformers" in sys.modules:  # where a model is unpickled, transformers comes first
    _register()


def attend_torch(
    attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], bias: Tensor | None, needs: Sequence[str]
) -> tuple[Any, Seen | None]:
    """Call torch's ``nn.MultiheadAttention`` of one sequence, (B, T, D); what it saw is projected once more."""
    heads = attention.num_heads
    if bias is not None:
        mask = bias.expand(-1, heads, args[0].shape[1], -1).flatten(0, 1)  # (B · h, T, T)
        kwargs = {**kwargs, "attn_mask": mask.to(args[0].dtype)}
    if not needs:
        return attention(*args, **kwargs), None
    args, kwargs = _prehooked(attention, args, kwargs)
    output, x = _forward(attention, attention, args, kwargs), args[0]
    weights = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    query = _heads(F.linear(x[:, :1], weights[0], biases[0]), heads)  # (B, h, 1, d)
    key = _heads(F.linear(x, weights[1], biases[1]), heads)
    value = _heads(F.linear(x, weights[2], biases[2]), heads) if "significance" in needs else None
    return output, Seen(query, key, attention.head_dim**-0.5, key, value, bias)


def _forward(attention: Any, stand_in: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the attention gives for arguments that its pre-hooks have seen, its parts exchanged; its hooks take part."""
    around: Any = None
    if attention._backward_hooks or attention._backward_pre_hooks:
        full, _ = attention._get_backward_hooks()
        around = BackwardHook(attention, full, attention._get_backward_pre_hooks())
        args = around.setup_input_hook(args)
    output = host_class(attention).forward(stand_in, *args, **kwargs)
    for number, hook in list(attention._forward_hooks.items()):  # such as those of output_hidden_states=True
        with_kwargs = number in attention._forward_hooks_with_kwargs
        given = hook(attention, args, kwargs, output) if with_kwargs else hook(attention, args, output)
        output = output if given is None else given
    return output if around is None else around.setup_output_hook(output)


def _prehooked(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as the attention's forward pre-hooks leave them.

    Raises:
        RuntimeError: Another tool patched its forward, which would be passed by.
    """
    if has_own_forward(attention):
        raise RuntimeError(f"{patched(attention)}: take the patch away, or {TOKENS_ALONE}")
    for number, hook in list(attention._forward_pre_hooks.items()):
        if number in attention._forward_pre_hooks_with_kwargs:
            given = hook(attention, args, kwargs)
            args, kwargs = (args, kwargs) if given is None else given
        else:
            given = hook(attention, args)
            args = args if given is None else given if isinstance(given, tuple) else (given,)
    return args, kwargs


def patched(module: nn.Module) -> str:
    """What is wrong with a module whose forward another tool patched, in words."""
    return (
        f"its {host_class(module).__name__} has a forward of its own in its __dict__ (patched by another tool), so "
        "that what it computes can be neither seen nor changed"
    )


def _heads(flat: Tensor, heads: int) -> Tensor:
    """(B, T, h · d) → (B, h, T, d)."""
    return torch.unflatten(flat, -1, (heads, -1)).transpose(1, 2)
