"""Owns whether a VM exists on this host."""
