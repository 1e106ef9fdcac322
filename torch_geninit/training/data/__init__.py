"""Images, and kernels of trained networks, to train and measure on."""
