"""What makes the documentation site of the pages in docs/, by ``make docs``: hooks of MkDocs and of griffe."""
