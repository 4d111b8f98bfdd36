"""The headings of the options in the help of `fedcli train`."""

from __future__ import annotations

DATA = "Data"
COHORT = "Clients and rounds"
LOCAL = "Local training"
MODEL = "Model"
ALGORITHM = "Algorithm"
ATTACK = "Attack"
EVALUATION = "Evaluation"
RUN = "Run"
# In the order of the help text.
SECTIONS = (DATA, COHORT, LOCAL, MODEL, ALGORITHM, ATTACK, EVALUATION, RUN)
