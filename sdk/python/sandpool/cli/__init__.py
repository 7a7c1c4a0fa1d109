"""The sandpool command."""
