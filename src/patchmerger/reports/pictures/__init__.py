"""The pictures of reports: one file a command, all in the one style of ``style.py``; and the pictures of merge maps."""
