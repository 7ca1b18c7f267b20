"""The command line `mxext`: thin commands over the server, the bench code and the HTTP API."""
