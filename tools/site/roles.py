"""An extension of griffe: the roles of Sphinx in docstrings, such as ``:func:``, become code as Markdown has it."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|data|mod|attr|exc):`~?([^`<]*?)`")


class Roles(griffe.Extension):
    """Rewrites each docstring once it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj``."""
        if obj.docstring is not None:
            text = _ROLE.sub(lambda role: f"`{role[1].removeprefix('~').rsplit('.', 1)[-1]}`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^(\s*\S.*)::$", r"\1:", text, flags=re.MULTILINE)
