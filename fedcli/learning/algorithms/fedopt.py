"""FedAvgM, FedAdagrad, FedAdam, FedYogi: federated averaging with a server optimizer of that name.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019, https://arxiv.org/abs/1909.06335, for FedAvgM; Reddi, Charles, Zaheer,
Garrett, Rush, Konecny, Kumar and McMahan, "Adaptive Federated Optimization", ICLR 2021,
https://arxiv.org/abs/2003.00295, Algorithm 2, for the others.

Clients work as in federated averaging (see `fedavg`); the server gives g = -mean_delta to

    fedavgm     a = 0.9 a + g;                              w -= lr * a
    fedadagrad  v = v + g^2;                                w -= lr * g / (sqrt(v) + tau)
    fedadam     m = 0.9 m + 0.1 g; v = 0.99 v + 0.01 g^2;   w -= lr * m / (sqrt(v) + tau)
    fedyogi     m likewise; v = v - 0.01 g^2 sign(v - g^2); w -= lr * m / (sqrt(v) + tau)

Each is a row of the registry with the server optimizer and its options, all of which can be given
other values: tau is `epsilon`, 0.001, which the paper advises to start from, v starts at 0 as in
its experiments. It tunes lr for each task; the defaults are Flower's, for FedAvgM 1. Weights: by
examples processed (the default), or each the same.

Where we differ: the paper's text has v start at tau^2 or more, and momentum in FedAdagrad too (0 in
its experiments, and here); Flower's FedAdam corrects its bias, with an exponent one too large.
"""

from __future__ import annotations

from fedcli.learning.algorithms.fedavg import LocalSteps

__all__ = ["LocalSteps"]
