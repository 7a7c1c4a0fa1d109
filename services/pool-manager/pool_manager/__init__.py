"""Owns pools, sessions and which VM is whose."""

import service_kit  # noqa: F401  # first: it decides how gRPC is loaded
