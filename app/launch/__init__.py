"""``jepa launch``: runs as jobs of a cluster (SLURM through submitit) or of this machine."""
