"""The table of audits: attacks on the privacy of a run, made by the owner of its data."""

from __future__ import annotations

from fedcli.settings.options import Entry, Option, table

_MOST = 100_000

# The `code` of a row makes the audit. It is called with the audited run, a function that receives
# the progress, and the options by name.
AUDITS = table(
    Entry(
        "gradient-inversion",
        "Reads the pixels of a client's example from its update: exact if the first layer is dense "
        "and the client has one example, for any number of local steps. With several examples it "
        "reads a mixture of them for each unit of that layer.",
        "Phong et al. 2018 (IEEE TIFS); Geiping et al. 2020, arXiv 2003.14053",
        (
            Option("client", "", "The client; by default the first that takes part."),
            Option("first", 0, "Index of the client's first example that is used.", 0, _MOST),
            Option("examples", 1, "Number of examples that the client trains on.", 1, 64),
        ),
        requirement="a first layer that is dense and has a bias; exact for steps of SGD",
        cost="the training of one client, and one pass over its update",
        code="fedcli.audits.inversion:audit",
        example="fedcli audit runs/first gradient-inversion --option client=w0003",
    ),
    Entry(
        "loss-threshold",
        "Distinguishes the examples that the model was trained on from others by their lower loss.",
        "Yeom et al. 2018, arXiv 1709.01604",
        (
            Option(
                "others",
                "test",
                "The examples that were not trained on: test, the test split of the clients that "
                "took part; unseen, the train split of the clients that did not.",
                choices=("test", "unseen"),
            ),
        ),
        requirement="examples that were not trained on: a split test, or clients not drawn",
        cost="one pass over the examples",
        code="fedcli.audits.loss_threshold:audit",
        example="fedcli audit runs/first loss-threshold --option others=unseen",
    ),
    Entry(
        "lira",
        "Distinguishes the clients that took part from others by a likelihood ratio: the model's "
        "confidence on a client's examples is compared with that of shadow runs with and without "
        "this client.",
        "Carlini et al. 2022 (IEEE S&P), arXiv 2112.03570",
        (
            Option(
                "shadows",
                16,
                "Number of shadow runs; each scored client has examples in half of them.",
                4,
                4096,
            ),
            Option("clients", 50, "Largest number of clients of each kind to score.", 1, _MOST),
            Option("offline", False, "Use only the shadow runs without a client."),
            Option(
                "shared_variance",
                True,
                "One variance for all clients, for few shadow runs; else one for each client.",
            ),
        ),
        requirement="clients that took part and clients that did not",
        cost="as many runs as shadows, each like the audited one",
        code="fedcli.audits.likelihood_ratio:audit",
        example="fedcli audit runs/first lira --option shadows=32",
    ),
    Entry(
        "canary",
        "A lower bound on epsilon: trains runs with and without a client whose labels are wrong, "
        "and counts how often they are distinguished. A bound above the epsilon that the run "
        "reports proves a fault.",
        "Jagielski, Ullman, Oprea 2020, arXiv 2006.07709; Clopper and Pearson 1934",
        (
            Option("canary", "", "The client; by default the first that may take part."),
            Option(
                "shadows", 40, "Number of runs with this client, and of runs without.", 4, 100_000
            ),
        ),
        requirement="a client that may take part; more shadows can show a larger epsilon",
        cost="twice as many runs as shadows, each like the audited one",
        code="fedcli.audits.canary:audit",
        example="fedcli audit runs/private canary --option shadows=100",
    ),
)
