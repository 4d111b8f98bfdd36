"""The outputs of `evaluate_run` beside its result: predictions and files."""

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
    """The requested outputs. The fields are arguments of `evaluate_run`."""

    predictions_file: Path | None = None
    per_client_file: Path | None = None
    num_errors: int | None = None
    prediction_callbacks: tuple[Callable[[Predicted], None], ...] = ()

    @property
    def has_predictions(self) -> bool:
        """Whether any output needs the predictions of single examples."""
        has_results = self.predictions_file is not None or self.num_errors is not None
        return has_results or bool(self.prediction_callbacks)

    def check_names(self) -> None:
        """Checks, before any work, that the files can be written.

        Raises:
            ConfigError: The suffix of a name is that of no known format.
            RunError: A folder does not exist or is not writable.
        """
        if self.predictions_file is not None:
            predictions.check_target(self.predictions_file)
        if self.per_client_file is not None:
            client_file.check_name(self.per_client_file)

    def check_is_no_input(self, inputs: Iterable[Path]) -> None:
        """Raises ConfigError if a file is also an input, or if both files are the same."""
        outputs = {"--predictions": self.predictions_file, "--per-client": self.per_client_file}
        option_by_file: dict[Path, str] = {}
        input_files = list(inputs)
        for option, file in outputs.items():
            if file is None:
                continue
            check_is_no_input(file, input_files, f"{option} {file}")
            other = option_by_file.setdefault(file.resolve(), option)
            if other != option:
                raise ConfigError(
                    f"{other} and {option} name the same file, {file}; choose another name"
                )

    def predict(
        self, trained: Trained, group: EvaluationGroup, cancel: CancelFlag | None
    ) -> WorstMistakes | None:
        """Computes predictions and passes them to all outputs; returns the worst mistakes, if any.

        Raises:
            Cancelled: `cancel` was set.
            DataError: A client's data are bad.
            RunError: The file cannot be written.
        """
        if not self.has_predictions:
            return None
        worst = None if self.num_errors is None else WorstMistakes(self.num_errors)
        with ExitStack() as stack:
            callbacks = [*self.prediction_callbacks, *([] if worst is None else [worst.add])]
            if self.predictions_file is not None:
                num_classes = trained.model.layout.num_classes
                file = predictions.writing(self.predictions_file, num_classes)
                callbacks.append(stack.enter_context(file))
            state = trained.state
            found = predictions.predict(
                *(group, trained.model, trained.engine, state.evaluated_weights),
                cancel,
                state.starts,
            )
            for predicted in found:
                for callback in callbacks:
                    callback(predicted)
        return worst

    def write_clients(self, evaluation: Evaluation) -> None:
        """Writes the file of results by client if it is requested. Raises RunError."""
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
