"""What commands show: one file a command, made from its results; imported by nothing below the command line.

Each file has the table and the words, for the terminal and for its section of the HTML report. ``parts/`` is what they
are made of, ``pictures/`` has their PNGs, ``html/`` the report.
"""
