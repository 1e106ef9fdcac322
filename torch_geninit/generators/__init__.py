"""Networks that make weights; they are asked a request, and never see a user's module."""
