"""The closed kit that every service starts from."""
