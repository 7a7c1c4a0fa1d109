"""The byte path from a scheduler to one VM, as its own process."""
