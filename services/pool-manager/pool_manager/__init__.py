"""Owns pools, sessions and which VM is whose."""
