"""The methods of compressing updates, by the names of `--compress`."""

from __future__ import annotations

from collections.abc import Mapping

from fedcli.settings.options import LEAST_POSITIVE, MAX_FLOAT, Entry, Option, Value, table

_FRACTION = Option(
    "fraction", 0.01, "Share of the values that are sent, rounded up to a whole number.", 1e-7, 1.0
)
_BLOCK = Option("block", 8192, "Values that are rotated together, a power of two.", 1, 1 << 24)
_DECAY = Option("decay", 1.0, "Factor of the residual in error feedback.", 0.0, 1.0)


_SEED = Option(
    "explicit_seed",
    False,
    "Whether a client sends the seed of its random words, 8 bytes; if not, both sides derive it "
    "from the run's seed.",
)


def _feedback(default: bool) -> Option:
    return Option(
        "error_feedback",
        default,
        "Whether a client adds to its next update the part that it did not send.",
    )


def _check_block(options: Mapping[str, Value]) -> str | None:
    block = options["block"]
    assert isinstance(block, int)
    if block & (block - 1):
        lower = 1 << (block.bit_length() - 1)
        return f"block {block} is not a power of two; choose {lower} or {2 * lower}"
    return None


def _check_drive(options: Mapping[str, Value]) -> str | None:
    if options["unbiased"] and options["error_feedback"]:
        return (
            "the scale of unbiased=true has a larger error, which error feedback would add up; "
            "give unbiased=false or error_feedback=false"
        )
    return _check_block(options)


# The `code` of a row makes the stage that compresses. It is called with the number of threads and
# with the options by name.
COMPRESSORS = table(
    Entry(
        "uniform",
        "2^bits levels between the smallest and largest value of each tensor, rounded at random; "
        "unbiased.",
        "Konecny et al. 2016, arXiv 1610.05492; Suresh et al. 2017, arXiv 1611.00429",
        (Option("bits", 8, "Bits per value.", 1, 16),),
        example="fedcli train --compress uniform --compress-option bits=4",
        requirement="nothing",
        cost="bits for each value, and 8 bytes a tensor",
        code="fedcli.learning.updates.compression:uniform",
    ),
    Entry(
        "fixed-step",
        "Multiples of one step that all clients share, rounded at random; unbiased inside the "
        "range of its bits.",
        "TFF aggregators/stochastic_discretization.py",
        (
            Option("step", 1e-3, "Distance between two levels.", LEAST_POSITIVE, MAX_FLOAT),
            Option("bits", 12, "Bits per value; multiples outside their range are clipped.", 1, 16),
        ),
        example="fedcli train --compress fixed-step --compress-option step=0.0005",
        requirement="a step that fits the updates",
        cost="bits for each value",
        code="fedcli.learning.updates.compression:fixed_step",
    ),
    Entry(
        "qsgd",
        "The L2 norm, and for each value its sign and a level from 0 to levels, rounded at random; "
        "unbiased. With --algorithm fedavg this is FedPAQ.",
        "Alistarh et al. 2017, arXiv 1610.02132; Reisizadeh et al. 2020, arXiv 1909.13014",
        (
            Option("levels", 4, "Levels above 0.", 1, 32767),
            Option(
                "coding",
                "gamma",
                "gamma: runs of zeros and levels in Elias gamma code; fixed: equal bits per value.",
                choices=("gamma", "fixed"),
            ),
        ),
        example="fedcli train --compress qsgd --compress-option levels=256",
        requirement="nothing",
        cost="4 bytes, and a few bits for each value that is not 0",
        code="fedcli.learning.updates.compression:qsgd",
    ),
    Entry(
        "terngrad",
        "A scale for each tensor and -1, 0 or 1 for each value, at random; unbiased for values "
        "inside the clip.",
        "Wen et al. 2017, arXiv 1705.07878",
        (
            Option(
                "clip",
                2.5,
                "Clip to this many standard deviations of a tensor; 0: no clipping.",
                0.0,
                1e6,
            ),
            Option(
                "coding",
                "base-3",
                "base-3: five values per byte; two-bit: four.",
                choices=("base-3", "two-bit"),
            ),
        ),
        example="fedcli train --compress terngrad",
        requirement="nothing",
        cost="1.6 or 2 bits for each value, and 4 bytes a tensor",
        code="fedcli.learning.updates.compression:terngrad",
    ),
    Entry(
        "sign",
        "The sign of each value and the mean magnitude of each tensor; biased, hence with error "
        "feedback.",
        "Karimireddy et al. 2019, arXiv 1901.09847",
        (_feedback(True), _DECAY),
        example="fedcli train --compress sign",
        requirement="nothing",
        cost="1 bit for each value, and 4 bytes a tensor; P floats kept for each client",
        code="fedcli.learning.updates.compression:sign",
    ),
    Entry(
        "top-k",
        "The values of largest magnitude and their positions; biased, hence with error feedback.",
        "Aji and Heafield 2017, arXiv 1704.05021; Stich et al. 2018, arXiv 1809.07599",
        (_FRACTION, _feedback(True), _DECAY),
        example="fedcli train --compress top-k --compress-option fraction=0.05",
        requirement="nothing",
        cost="4 bytes and a position for each value that is sent; P floats kept for each client",
        code="fedcli.learning.updates.compression:top_k",
    ),
    Entry(
        "random-k",
        "A random share of the values; client and server draw the positions from the same seed. "
        "Without error feedback they are scaled up, so that they are unbiased.",
        "Konecny et al. 2016, arXiv 1610.05492",
        (_FRACTION, _feedback(False), _DECAY, _SEED),
        example="fedcli train --compress random-k --compress-option fraction=0.1",
        requirement="nothing",
        cost="4 bytes for each value that is sent; 8 for an explicit seed",
        code="fedcli.learning.updates.compression:random_k",
    ),
    Entry(
        "powersgd",
        "Each matrix as two factors of low rank, of which all clients of a round share the left "
        "one; biased, hence with error feedback. Two exchanges per round.",
        "Vogels et al. 2019, arXiv 1905.13727",
        (Option("rank", 2, "Columns of the factors.", 1, 64), _feedback(True), _DECAY),
        example="fedcli train --compress powersgd --compress-option rank=4",
        requirement="matrices; vectors are sent as they are",
        cost=(
            "4 rank (rows + columns) bytes for each matrix, in two exchanges; P floats kept"
            " for each client"
        ),
        code="fedcli.learning.updates.low_rank:PowerSGD",
    ),
    Entry(
        "sketch",
        "Count sketches, which the server adds up. It applies the largest values, and the rest "
        "stays in its sketch. Only with --aggregator mean.",
        "Rothchild et al. 2020 (FetchSGD), arXiv 2007.07682",
        (
            Option("depth", 5, "Rows of the sketch.", 1, 15),
            Option("width", 0.2, "Cells of a row, as a share of the parameters.", 1e-7, 1.0),
            Option(
                "fraction",
                0.01,
                "Share of the values that the server applies in a round, rounded up to a whole "
                "number.",
                1e-7,
                1.0,
            ),
            Option("momentum", 0.9, "Momentum of the summed sketch, 0 for none.", 0.0, 0.999999),
        ),
        example="fedcli train --compress sketch --compress-option width=0.05",
        requirement="--aggregator mean",
        cost="4 bytes for each cell of the sketch; two sketches kept by the server",
        code="fedcli.learning.updates.sketching:Sketch",
    ),
    Entry(
        "drive",
        "The signs after a random rotation, and a scale for each block of values.",
        "Vargaftik et al. 2021, arXiv 2105.08339",
        (
            _BLOCK,
            Option(
                "unbiased",
                True,
                "Scale to keep the inner product with the update; if false, to minimise the error.",
            ),
            _feedback(False),
            _DECAY,
            _SEED,
        ),
        check=_check_drive,
        example="fedcli train --compress drive",
        requirement="nothing",
        cost="1 bit for each value, padded to whole blocks, and 4 bytes a block; 8 for an "
        "explicit seed",
        code="fedcli.learning.updates.compression:drive",
    ),
    Entry(
        "eden",
        "The nearest of 2^bits centroids after a random rotation, and a scale for each block.",
        "Vargaftik et al. 2022, arXiv 2108.08842",
        (Option("bits", 2, "Bits per value.", 1, 4), _BLOCK, _SEED),
        check=_check_block,
        example="fedcli train --compress eden --compress-option bits=4",
        requirement="nothing",
        cost="bits for each value, padded to whole blocks, and 4 bytes a block; 8 for an "
        "explicit seed",
        code="fedcli.learning.updates.compression:eden",
    ),
)
