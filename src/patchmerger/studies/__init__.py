"""Studies: each trains variants alike and writes one ``results.json``."""
