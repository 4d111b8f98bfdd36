"""The headings that options of `fedcli train` stand under in its help."""

from __future__ import annotations

DATA = "Data"
COHORT = "Clients and rounds"
LOCAL = "Local training"
MODEL = "Model"
ALGORITHM = "Algorithm"
EVALUATION = "Evaluation"
RUN = "Run"
# In the order of the help text.
SECTIONS = (DATA, COHORT, LOCAL, MODEL, ALGORITHM, EVALUATION, RUN)
