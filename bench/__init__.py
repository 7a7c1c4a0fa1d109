"""What sandpool costs, beside what its parts cost without it, in one run. `make bench`."""
