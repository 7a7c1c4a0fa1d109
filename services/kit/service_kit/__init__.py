"""The closed kit that every service starts from."""

import os

# gRPC's core writes what peers send, such as the debug text of a GOAWAY, past every logger: guests are peers too. It
# looks at this once, when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
