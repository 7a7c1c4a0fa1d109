"""A driver without a hypervisor, for tests."""
