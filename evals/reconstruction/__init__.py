"""The parts of the task ``reconstruction``: clips, decoders as probes, what predictors expect, and scores."""
