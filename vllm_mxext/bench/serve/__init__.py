"""The performance tester: plans, load, requests, statistics and reports of a server measured over HTTP."""
