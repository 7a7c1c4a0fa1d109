"""The public API: routes calls to the right VM."""

import service_kit  # noqa: F401  # first: it decides how gRPC is loaded
