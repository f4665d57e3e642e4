"""Mathematics on masks, weights and accuracies: pure functions that know neither files nor figures."""
