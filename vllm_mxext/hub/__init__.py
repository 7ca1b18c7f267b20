"""The MX Hub: a model's name becomes files on this machine and settings of an engine."""
