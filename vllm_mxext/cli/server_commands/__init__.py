"""The commands of `mxext server`; each module has a function per command."""
