"""The store: whole, verified files of models on this machine."""
