"""What ``jepa play`` is made of: steering, the dream, the game, and the page that shows it."""
