"""The parameters of a live model: their names, their parts on other ranks, and how they are written."""
