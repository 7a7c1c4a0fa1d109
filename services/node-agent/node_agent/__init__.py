"""Owns whether a VM exists on this host."""

import service_kit  # noqa: F401  # first: it decides how gRPC is loaded
