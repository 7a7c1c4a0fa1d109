"""Guests that break every rule, on the real path: scheduler, pool-manager, node agent and tunnel as processes."""
