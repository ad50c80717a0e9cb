import torch

from evals.probes import ProbeConfig, fit_probe


def test_logistic_regression_keeps_the_order_of_improbable_classes() -> None:
    """Eight clusters far apart along a line: every answer is sure, and the five most probable still are the nearest."""
    y = torch.arange(160) % 8
    noise = torch.randn(160, 2, generator=torch.Generator().manual_seed(0))
    corners = torch.stack(((y * 0.785).cos(), (y * 0.785).sin()), dim=1)
    x = 8 * corners + 0.1 * noise
    config = ProbeConfig(kind="logistic", penalties=(1e-3,))
    found = fit_probe(config, x, y, x, y).probabilities
    assert (found.sort(dim=1).values[:, :3] < 1e-6).all()
    assert all(row.unique().numel() == 8 for row in found)
