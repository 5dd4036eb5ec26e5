"""The few-shot room: ``probe`` is the whole, ``features`` of a frozen model, then ``ridge``, then a ``result``."""
