"""The parts of ``jepa decode``."""
