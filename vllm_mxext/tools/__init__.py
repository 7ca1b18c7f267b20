"""Programs that the documents call with `python -m`."""
