"""What a training script says, by its text alone: nothing of it is imported or run."""
