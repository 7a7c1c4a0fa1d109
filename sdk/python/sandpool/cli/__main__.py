"""`python -m sandpool.cli`, the same as `sandpool`."""

from sandpool.cli.main import main

main()
