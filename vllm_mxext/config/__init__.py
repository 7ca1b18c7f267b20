"""Configuration: flags, files and environment become a frozen tree; nothing reads them after start-up."""
