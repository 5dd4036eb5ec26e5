"""Pages and queues of this repository, made from its committed results; not part of the package."""
