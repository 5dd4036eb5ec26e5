"""The report: saved results as one HTML file that a manager and an engineer can both read.

``reading.py`` finds the results, ``kinds.py`` knows which command each is of, and ``page.py`` renders their sections
with the templates. Nothing here computes: no torch is imported.
"""
