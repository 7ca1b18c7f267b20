"""Measuring: workloads, the engine offline, a server over HTTP, and reports that end in one line of JSON."""
