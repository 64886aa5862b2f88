"""Training: data sets, augmentation and synthesis, the loop, and the recipes that made the shipped models."""
