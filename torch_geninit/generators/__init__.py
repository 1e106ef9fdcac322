"""Networks that make weights; they see a plan and a graph, never a user's module."""
