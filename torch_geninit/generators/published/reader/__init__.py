"""The graph that the published hypernetworks read: a walk over autograd's."""
