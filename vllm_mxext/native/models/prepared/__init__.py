"""Prepared files: packed weights kept on disk, so that later starts neither read nor pack the checkpoint."""
