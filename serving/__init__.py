"""Answers out: the Ray Serve application, its HTTP API, its client and the command line."""
