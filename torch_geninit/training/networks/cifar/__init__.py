"""Well-known networks for 32x32 images, written anew: for evaluation, never for training."""
