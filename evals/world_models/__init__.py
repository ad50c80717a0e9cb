"""Measures of world models: how far ahead they see, what of the true state their latents hold, how well they act."""
