"""Epsilons against those of dp-accounting, which CI installs in a job of its own."""

from __future__ import annotations

import pytest

dp_accounting = pytest.importorskip("dp_accounting")

from dp_accounting.pld import privacy_loss_distribution  # noqa: E402
from dp_accounting.rdp import RdpAccountant  # noqa: E402

from fedcli.privacy import renyi  # noqa: E402
from fedcli.privacy.accountant import Accountant  # noqa: E402
from fedcli.privacy.loss_distribution import STEP  # noqa: E402
from fedcli.privacy.schemes import PoissonSampled, scheme_of  # noqa: E402
from tests.privacy.golden import FIXED_SIZE, POISSON  # noqa: E402

# Implementations round differently, most for a small delta and many rounds.
TOLERANCE = 2e-6


@pytest.mark.parametrize(
    ("rate", "z", "num_rounds", "delta"),
    [
        *((row.rate, row.noise_multiplier, row.num_rounds, row.delta) for row in POISSON[2:5]),
        (0.07, 0.9, 30, 1e-4),
        (0.4, 3.0, 200, 1e-6),
        (1.0, 2.5, 12, 1e-5),
    ],
)
def test_pld_equals(rate: float, z: float, num_rounds: int, delta: float) -> None:
    one = privacy_loss_distribution.from_gaussian_mechanism(
        z, sampling_prob=rate, value_discretization_interval=STEP
    )
    theirs = one.self_compose(num_rounds).get_epsilon_for_delta(delta)
    scheme = PoissonSampled(rate) if rate < 1 else scheme_of("fixed", 1, 1)
    ours = Accountant(scheme, z, delta).spent(num_rounds).epsilon
    assert ours == pytest.approx(theirs, abs=TOLERANCE)


@pytest.mark.parametrize("row", FIXED_SIZE[2:])
def test_fixed_size_equals(row: tuple[int, int, float, int, float, float, float]) -> None:
    population, cohort_size, z, num_rounds, delta, *_ = row
    accountant = RdpAccountant(renyi.ORDERS, dp_accounting.NeighboringRelation.REPLACE_ONE)
    # dp-accounting does not count the sensitivity 2 C of a replacement, so z is halved here.
    event = dp_accounting.SampledWithoutReplacementDpEvent(
        population, cohort_size, dp_accounting.GaussianDpEvent(z / 2)
    )
    theirs = accountant.compose(event, num_rounds).get_epsilon(delta)
    ours = Accountant(scheme_of("uniform", population, cohort_size), z, delta).spent(num_rounds)
    assert ours.epsilon == pytest.approx(theirs, abs=TOLERANCE)


@pytest.mark.parametrize(("rate", "z", "num_rounds"), [(0.02, 1.5, 50), (0.2, 4.0, 300)])
def test_rdp_is_no_larger(rate: float, z: float, num_rounds: int) -> None:
    """The bound of dp-accounting 0.6.0 equals ours at whole orders, and is looser between them."""
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(z))
    theirs = RdpAccountant(renyi.ORDERS).compose(event, num_rounds).get_epsilon(1e-5)
    whole = [order for order in renyi.ORDERS if order == int(order)]
    at_whole = RdpAccountant(whole).compose(event, num_rounds).get_epsilon(1e-5)
    spent = num_rounds * renyi.poisson(rate, z)
    is_whole = [order == int(order) for order in renyi.ORDERS]
    assert renyi.epsilon(spent, 1e-5) <= theirs * (1 + 1e-9)
    shown = spent.copy()
    shown[[not each for each in is_whole]] = 1e9
    assert renyi.epsilon(shown, 1e-5) == pytest.approx(at_whole, abs=TOLERANCE)
