"""Sources: one module per scheme of model URIs."""
