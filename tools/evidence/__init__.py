"""The page of the evidence, docs/evidence.md, made from the committed results of this repository's own studies."""
