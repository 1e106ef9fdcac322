"""Whom a generator knows, and which accuracy it expects of what it fills."""
