"""Pages of docs/ that commands measure and rewrite."""
