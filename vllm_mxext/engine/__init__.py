"""Engines behind one interface: clients, text frontend and backends."""
