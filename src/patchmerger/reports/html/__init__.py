"""The report: saved results as one HTML file that a manager and an engineer can both read.

``reading.py`` finds the results, ``kinds/`` has one file for each kind of them, which says what is shown, as the plain
data of ``parts.py``; ``page.py`` renders that with the templates. Nothing here computes: no torch is imported.
"""
