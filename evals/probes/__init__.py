"""Probes on frozen features: ``fit_probe`` and its settings."""

from evals.probes.probe import HeadScore, ProbeConfig, ProbeResult, fit_probe

__all__ = ["HeadScore", "ProbeConfig", "ProbeResult", "fit_probe"]
