"""What inferred actions are worth: six measures, as each alone can be fooled."""
