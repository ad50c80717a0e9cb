"""The built-in world: ``world`` simulates, ``draw`` draws, ``dataset`` writes video files."""
