"""sandpool: code in its own microVM, a millisecond away."""
