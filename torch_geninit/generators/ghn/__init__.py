"""The graph hypernetwork: features of a graph, encoder, decoder."""
