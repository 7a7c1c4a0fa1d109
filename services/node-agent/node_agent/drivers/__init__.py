"""Hypervisors, each behind the Vmm protocol."""
