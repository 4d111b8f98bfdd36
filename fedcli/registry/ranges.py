"""The numbers that the core can take, which bound rates and norms."""

from __future__ import annotations

# The core computes in float32: no rate above its largest number, nothing positive that it takes
# for 0.
MAX_FLOAT = 3e38
LEAST_POSITIVE = 1.2e-38
