"""From clips to frozen features: encoded once, kept on disk, read as rows."""
