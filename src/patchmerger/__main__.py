"""What ``patchmerger`` and ``python -m patchmerger`` run: the command line, interrupted quietly from its imports on."""

import sys

_INTERRUPTED = 130


def main() -> int:
    """Import the command line and run it; returns the exit status."""
    try:
        from patchmerger.cli import main as run

        return run()
    except KeyboardInterrupt:  # before there is a command to name
        print("\npatchmerger: interrupted", file=sys.stderr)
        return _INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
