"""The command line: each subcommand calls one public function, with its options taken from its signature."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``patchmerger``; returns the exit status."""
    try:
        from patchmerger.commands import run
    except ModuleNotFoundError as error:
        print(
            f"patchmerger: {error.name} is not installed; the command line needs: pip install 'patchmerger[train]'",
            file=sys.stderr,
        )
        return 2
    return run(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
