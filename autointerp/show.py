"""One feature, looked up."""
