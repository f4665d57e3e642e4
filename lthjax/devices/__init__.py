"""Platform-dependent parts: replicates on devices, precision of products, forms of convolutions."""
