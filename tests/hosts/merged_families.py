"""The tiny models of timm's families, with mergers in them."""

import copy
import functools

import torch
from torch import nn

from hosts.families import FAMILIES, make_family
from patchmerger.insertion import insert
from patchmerger.insertion.inserted import mergers

BIAS = [name for name, family in FAMILIES.items() if family.positions == "drop"]


@functools.cache
def plain_model(name: str) -> nn.Module:
    """Made once: tests copy it."""
    return make_family(name)


def make_plain(name: str) -> nn.Module:
    return copy.deepcopy(plain_model(name))


def make_merged(name: str, num_tokens=(9, 5), after=(1, 2), **kwargs) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return insert(
            make_plain(name), num_tokens, after, positions=FAMILIES[name].positions, **{"prior": None} | kwargs
        )


def places(model: nn.Module) -> dict[int, nn.Module]:
    return {found.after: found.module for found in mergers(model)}
