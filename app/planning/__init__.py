"""The parts of ``jepa plan``."""
