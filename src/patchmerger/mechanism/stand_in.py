"""A host's own forward pass with some of its parts exchanged for one call, without a change to any module.

``forward`` of the host's class is called on a :class:`StandIn` in the module's place, which answers for it but for the
parts that are exchanged. All is local to the call: nothing is stored in a module, so that threads, checkpointing,
``torch.compile`` and ``torch.export`` see a plain function of its input.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class StandIn:
    """Answers for ``of``, but for the attributes in ``exchanged``.

    Attributes:
        forward: Nothing; a wrapper of transformers looks here whether it is the outermost one, which is ours.
    """

    forward: Any = None

    def __init__(self, of: Any, exchanged: dict[str, Any]) -> None:
        self.patchmerger_of = of
        self.patchmerger_exchanged = exchanged

    def __getattr__(self, name: str) -> Any:
        exchanged = self.patchmerger_exchanged
        return exchanged[name] if name in exchanged else getattr(self.patchmerger_of, name)


class Recorder:
    """Calls ``of`` and keeps what it gave last as ``output``."""

    def __init__(self, of: Any) -> None:
        self.of = of
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self.of(*args, **kwargs)
        return self.output


class Silent:
    """Gives zeros that add to any tokens, (1, 1, D), in the place of a branch, which may give weights beside."""

    def __init__(self, *, as_tuple: bool = False) -> None:
        self.as_tuple = as_tuple

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tokens: Tensor = args[0] if args else kwargs["hidden_states"]
        zeros = tokens.new_zeros(1, 1, tokens.shape[-1])
        return (zeros, None) if self.as_tuple else zeros
