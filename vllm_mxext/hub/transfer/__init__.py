"""Downloads: ranges of files, resumed, verified while they arrive."""
