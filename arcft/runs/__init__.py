"""What one run does, start to end. The only room that knows Hydra."""
