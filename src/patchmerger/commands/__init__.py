"""The subcommands of the command line, one file each: options in, a result shown.

Each file has a frozen dataclass ``Command``. Its fields are the options, with the docstring's ``Args`` as their help;
its ``run`` imports what it needs, calls the library, shows the result, and returns the exit status. No file imports
torch before ``run`` is called, so that ``--help`` and a mistyped option are answered at once.
"""
