"""How a merger gets between two blocks: a subclass of a block's own class, made on the fly, that calls ``super()``."""
