"""Mathematics on masks, weights and accuracies: pure functions without file access or plotting."""
