"""Where the gaps of real models on photographs run."""
