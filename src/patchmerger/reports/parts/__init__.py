"""What reports are made of, as plain data: numbers in words, tables, charts, the diagram of a model, sections."""
