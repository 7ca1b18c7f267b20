"""One module per format of adapter files."""
