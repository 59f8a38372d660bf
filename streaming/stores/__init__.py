"""Sequence stores: every user's history as a materialised view of the event topic."""
