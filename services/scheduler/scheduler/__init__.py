"""The public API: routes calls to the right VM."""
