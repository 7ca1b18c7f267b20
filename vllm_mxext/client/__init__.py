"""A client that survives bad servers and bad networks, for this server and every other with OpenAI's API."""
