from .inserted import InsertedMerger as InsertedMerger
from .inserted import mergers as mergers
from .inserting import insert as insert
from .inserting import remove as remove
