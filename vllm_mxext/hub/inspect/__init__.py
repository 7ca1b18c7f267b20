"""Looking at a machine: one module per kind of hardware, each of which reads files or asks one program or library."""
