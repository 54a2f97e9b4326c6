"""Readings of a representation: worked numbers and their limits."""

import pytest
import torch

from manyviews.monitoring import diagnostics, pictures
from tests.manyviews.references import T3


def test_rankme():
    double = {"dtype": torch.float64}
    assert diagnostics.rankme(torch.diag(torch.tensor([3.0, 1.0], **double))).item() == pytest.approx(
        1.75476529, abs=1e-7
    )
    assert diagnostics.rankme(torch.eye(4, **double)).item() == pytest.approx(4.00000062, abs=1e-7)
    assert diagnostics.rankme(torch.ones(5, 2, **double)).item() == pytest.approx(1.00000151, abs=1e-7)
    z = torch.cat([T3[0], T3[1]])
    assert diagnostics.rankme(z).item() == pytest.approx(1.98827047, abs=1e-7)
    assert diagnostics.rankme(5 * z).item() == pytest.approx(diagnostics.rankme(z).item())
    shifted = torch.randn(200, 16) + 100
    assert diagnostics.rankme(shifted) < 3 < 14 < diagnostics.rankme(shifted, centre=True)


def test_alignment_and_uniformity():
    assert diagnostics.alignment(T3[0], T3[1]).item() == pytest.approx(0.44266667, abs=1e-7)
    assert diagnostics.uniformity(T3[0]).item() == pytest.approx(-2.60839157, abs=1e-6)
    assert diagnostics.uniformity(T3[1]).item() == pytest.approx(-2.55176560, abs=1e-6)
    assert diagnostics.uniformity(torch.ones(6, 4)).item() == pytest.approx(0, abs=1e-6)
    assert diagnostics.uniformity(torch.randn(500, 256)).item() == pytest.approx(-4, abs=0.1)


def test_spread():
    assert diagnostics.spread(torch.ones(10, 8)).item() == 0
    assert diagnostics.spread(torch.randn(2000, 64)).item() == pytest.approx(1, abs=0.02)


def test_similarities():
    positive, negative = diagnostics.similarities(T3[:2])
    torch.testing.assert_close(positive, torch.tensor([0.8, 0.6, 0.936], dtype=torch.float64))
    assert negative.sort().values.tolist() == pytest.approx(sorted([-0.28, -0.96, 0.96, -0.352, -0.28, 0.8]))


def test_pictures_have_the_shape_of_pictures():
    images = [torch.randn(6, 3, 8, 8), torch.randn(6, 3, 4, 4)]
    assert pictures.views(images, None).shape == (6 * 10, 2 * 10, 3)
    same = torch.nn.functional.one_hot(torch.arange(5)).float()[None].repeat(2, 1, 1)
    matrix = pictures.similarity(same)
    assert matrix.shape == (20, 20, 3)
    assert (matrix[0, 0] == matrix[-1, -1]).all() and (matrix[0, 0] != matrix[0, -1]).any()
    assert pictures.neighbours_in_batch(images[0], torch.randn(6, 4), None).shape == (6 * 10, 6 * 10, 3)
