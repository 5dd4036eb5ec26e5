import re

import pytest
import torch
from timm.models.eva import EvaBlock
from timm.models.gemma4_vit import Gemma4Block
from torch import nn

from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.rotary import Rope
from patchmerger.mechanism.subclassing import Subclass, argument_names, attach

PADDED = BlockInputs(padding="mask")
REAL = torch.tensor([[True] * 5, [True, True, True, False, False]])
LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"mask": None, "scale": 0.5, "name": "text", "is_causal": False, "output_attentions": True},
        {"bias": torch.ones(5), "cos": torch.ones(5), "sin": torch.ones(5), "mask": torch.ones(5)},
        {"num_items_in_batch": torch.tensor(2), "condition": torch.ones(2, 8), "labels": [torch.ones(2)]},
        {"head_mask": torch.ones(2), "attention_mask": None, "position_embeddings": None},
    ],
)
def test_what_does_not_count_on_tokens_is_taken(given):
    inputs = BlockInputs(rope=Rope(("cos", "sin"), "cos, sin"), padding="mask", bias="bias")
    inputs.refuse_unknown(given, counts={5, 4})


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"attn_mask": torch.ones(3, 3)}, "attn_mask"),
        ({"key_padding_mask": "of flex attention"}, "key_padding_mask"),
        ({"rope": torch.ones(3)}, "rope"),
        ({"is_causal": True}, "is_causal"),
        ({"cu_seq_lens_q": torch.ones(3)}, "cu_seq_lens_q"),
        ({"position_embeddings": (torch.ones(3, 8), torch.ones(3, 8))}, "position_embeddings"),
        ({"anything": torch.ones(2, 5, 8)}, "anything"),
        ({"anything": torch.ones(4)}, "anything"),
        ({"anything": {"inside": [torch.ones(2, 1, 5, 5)]}}, "anything"),
    ],
)
def test_what_speaks_of_tokens_before_the_merge_is_refused(given, name):
    with pytest.raises(ValueError, match=f"^{name} was given to a merged model, but it speaks of the tokens before"):
        BlockInputs(padding="mask", bias="bias").refuse_unknown(given, counts={5, 4})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("lowest", ["finfo", "inf"])
def test_additive_masks(dtype, lowest):
    value = -torch.inf if lowest == "inf" else torch.finfo(dtype).min
    additive = torch.zeros(2, 5, dtype=dtype).masked_fill(~REAL, value)
    both = torch.maximum(additive[:, None, :], additive[:, :, None]).minimum(additive[:, None, :])
    for mask in (additive, additive[:, None, None], additive[:, None, None].expand(-1, 1, 5, -1), both[:, None]):
        assert torch.equal(PADDED.real_tokens({"mask": mask}, 0), REAL)
        assert torch.equal(PADDED.real_tokens({"mask": mask}, 2), REAL[:, 2:])


def test_bool_masks():
    symmetric = (REAL[:, None, :] & REAL[:, :, None])[:, None]  # no query sees padding, and padding sees nothing
    for mask in (REAL, REAL[:, None, None], symmetric):
        assert torch.equal(PADDED.real_tokens({"mask": mask}, 1), REAL[:, 1:])


def test_no_mask():
    assert PADDED.real_tokens({"mask": None}, 0) is None
    assert PADDED.real_tokens({}, 0) is None
    assert BlockInputs().real_tokens({"mask": torch.ones(1)}, 0) is None


@pytest.mark.parametrize("mask", [torch.ones(5), torch.ones(2, 5, 5), "blocks"])
def test_masks_in_another_form_are_refused(mask):
    with pytest.raises(ValueError, match=re.escape(f"mask ({type(mask).__name__}) must be a mask (B, N) or (B, 1, qu")):
        PADDED.real_tokens({"mask": mask}, 0)


def test_what_a_later_block_gets():
    inputs = BlockInputs(rope=Rope(), padding="mask", bias="bias")
    assert inputs.without_places({}) == {}
    given = {"mask": torch.ones(2, 5), "bias": None, "rope": torch.ones(5, 8), "scale": 0.5}
    assert inputs.without_places(given) == {"mask": None, "bias": None, "rope": None}
    assert inputs.without_places({"rope": None}) == {}
    assert BlockInputs().without_places(given) == {}


class Marked(Subclass):
    def forward(self, x, *args, **kwargs):
        return super().forward(x, *args, **kwargs)


def test_names_of_arguments():
    assert argument_names(nn.Linear(2, 2)) == ()
    eva = EvaBlock(8, 2)
    assert argument_names(eva) == ("rope", "attn_mask", "is_causal")
    attach(eva, Marked)
    assert argument_names(eva) == ("rope", "attn_mask", "is_causal")
    assert argument_names(Gemma4Block(8, 2, 4, 8)) == ("rope_cos", "rope_sin", "attn_mask")

    class KeywordOnly(nn.Module):
        def forward(self, x, first, *rest, second=None, **others):
            return x

    assert argument_names(KeywordOnly()) == ("first",)
