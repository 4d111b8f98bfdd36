"""FedAvgM, FedAdagrad, FedAdam, FedYogi: federated averaging with another server optimizer.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019, https://arxiv.org/abs/1909.06335, for FedAvgM; Reddi, Charles, Zaheer,
Garrett, Rush, Konecny, Kumar and McMahan, "Adaptive Federated Optimization", ICLR 2021,
https://arxiv.org/abs/2003.00295, Algorithm 2, for the others.

Clients work as in federated averaging (see `fedavg`). With g = -mean_delta the server step is

    fedavgm     a = 0.9 a + g;                              w -= lr * a
    fedadagrad  v = v + g^2;                                w -= lr * g / (sqrt(v) + tau)
    fedadam     m = 0.9 m + 0.1 g; v = 0.99 v + 0.01 g^2;   w -= lr * m / (sqrt(v) + tau)
    fedyogi     m likewise; v = v - 0.01 g^2 sign(v - g^2); w -= lr * m / (sqrt(v) + tau)

Each is a row of the table of algorithms with a server optimizer and its options. All options can be
changed. tau is the option `epsilon`; its default 0.001 is the paper's advice. v starts at 0, as in
the paper's experiments. The paper tunes lr for each task; the defaults here are Flower's, and 1 for
FedAvgM. Weights: by examples processed (the default), or all the same.

Differences: in the paper's text v starts at tau^2 or more, and FedAdagrad may have momentum (0 in
its experiments, and here). Flower's FedAdam has a bias correction with an exponent that is one too
large; ours has none.
"""

from __future__ import annotations

from fedcli.learning.algorithms.fedavg import LocalSteps

__all__ = ["LocalSteps"]
