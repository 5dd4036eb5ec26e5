"""A merger of vit-pytorch gives the same as ours."""

import copy

import pytest
import torch
from torch import nn
from vit_pytorch.vit_with_patch_merger import PatchMerger as VitPytorchPatchMerger

from patchmerger import from_vit_pytorch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("N", [1, 5, 60])
def test_from_vit_pytorch(N):
    torch.manual_seed(0)
    theirs = VitPytorchPatchMerger(dim=24, num_tokens_out=6).eval()
    with torch.no_grad():
        theirs.norm.weight.add_(torch.randn(24), alpha=0.3)
        theirs.norm.bias.add_(torch.randn(24), alpha=0.3)
    before = copy.deepcopy(theirs.state_dict())
    ours = from_vit_pytorch(theirs)
    x = torch.randn(3, N, 24) * 0.01
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    assert not ours.training
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, before[name])


def test_from_vit_pytorch_refuses_others():
    with pytest.raises(TypeError, match=r"module \(Linear\) is not vit-pytorch's PatchMerger: it needs `queries`"):
        from_vit_pytorch(nn.Linear(2, 2))
