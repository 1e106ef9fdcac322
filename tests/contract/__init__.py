"""What every verb promises, whatever the model and the generator."""
