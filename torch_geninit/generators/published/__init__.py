"""The published hypernetworks, GHN-1, GHN-2 and GHN-3, as their authors wrote them."""
