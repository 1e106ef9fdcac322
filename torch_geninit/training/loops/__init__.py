"""What is trained: zoos, classifiers, slice VAEs, graph hypernetworks."""
