"""What depends on where a study runs: replicates on devices, precision of products, forms of convolutions."""
