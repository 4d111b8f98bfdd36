"""What `evaluate_run` hands out beside its result: predictions and files, checked and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.evaluation import client_file, predictions
from fedcli.evaluation.predictions import Predicted, WorstMistakes
from fedcli.evaluation.result import Evaluation
from fedcli.federation.evaluation_groups import EvaluationGroup
from fedcli.files import check_is_no_input
from fedcli.runs.trained import Trained


@dataclass(frozen=True)
class EvaluationOutputs:
    """What is wanted; each field as in `evaluate_run`."""

    predictions_file: Path | None = None
    per_client_file: Path | None = None
    num_errors: int | None = None
    takers: tuple[Callable[[Predicted], None], ...] = ()

    @property
    def has_predictions(self) -> bool:
        """Whether predictions of single examples are wanted in any form."""
        has_results = self.predictions_file is not None or self.num_errors is not None
        return has_results or bool(self.takers)

    def check_names(self) -> None:
        """Refuses names of files that cannot be written, before any work.

        Raises:
            ConfigError: A name does not say in which format.
            RunError: A folder is not there or cannot be written to.
        """
        if self.predictions_file is not None:
            predictions.check_target(self.predictions_file)
        if self.per_client_file is not None:
            client_file.check_name(self.per_client_file)

    def check_is_no_input(self, inputs: Iterable[Path]) -> None:
        """Raises ConfigError if a file is one that is read, or both are the same."""
        outputs = {"--predictions": self.predictions_file, "--per-client": self.per_client_file}
        taken: dict[Path, str] = {}
        known = list(inputs)
        for option, file in outputs.items():
            if file is None:
                continue
            check_is_no_input(file, known, f"{option} {file}")
            other = taken.setdefault(file.resolve(), option)
            if other != option:
                raise ConfigError(
                    f"{other} and {option} name one file, {file}; choose another name"
                )

    def predict(
        self, trained: Trained, group: EvaluationGroup, cancel: CancelFlag | None
    ) -> WorstMistakes | None:
        """Hands predictions to all who want them; returns the worst mistakes if they are wanted.

        Raises:
            Cancelled: `cancel` was raised.
            DataError: A client's data are bad.
            RunError: The file cannot be written.
        """
        if not self.has_predictions:
            return None
        worst = None if self.num_errors is None else WorstMistakes(self.num_errors)
        with ExitStack() as stack:
            takers = [*self.takers, *([] if worst is None else [worst.add])]
            if self.predictions_file is not None:
                num_classes = trained.model.layout.num_classes
                file = predictions.writing(self.predictions_file, num_classes)
                takers.append(stack.enter_context(file))
            weights = trained.state.evaluated_weights
            for predicted in predictions.predict(
                group, trained.model, trained.engine, weights, cancel
            ):
                for take in takers:
                    take(predicted)
        return worst

    def write_clients(self, evaluation: Evaluation) -> None:
        """Writes the file of clients if it is wanted. Raises RunError."""
        if self.per_client_file is None:
            return
        tuned = evaluation.fine_tuned
        client_file.write(
            self.per_client_file,
            evaluation.client_ids,
            evaluation.client_stats,
            is_seen=evaluation.is_seen,
            fine_tuned=None if tuned is None else tuned.client_stats,
            metrics={} if evaluation.measured is None else evaluation.measured.by_client,
        )
