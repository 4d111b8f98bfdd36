"""The checkpoints of a run: when one is due, writing it, and deleting old ones."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from fedcli.learning.state import ServerState
from fedcli.runs.files import folder
from fedcli.runs.files.folder import RunDirectory
from fedcli.runs.files.logs import RunLog
from fedcli.runs.files.saved_states import client_states_of
from fedcli.runs.opening import Federation

# Without --checkpoint-every: at most this much work is lost, and saving takes less than 0.1 % of
# the time.
CHECKPOINT_SECONDS = 30.0


class CheckpointWriter:
    """Writes the checkpoints of one run."""

    def __init__(
        self, federation: Federation, run: RunDirectory, config_text: str, round_num: int
    ) -> None:
        """Starts at `round_num`, whose checkpoint is the newest of `run`."""
        self._federation = federation
        self._config = federation.config
        self._run = run
        self._config_text = config_text
        self._saved_round = round_num
        self._saved_at = monotonic()

    def is_due(self, round_num: int) -> bool:
        """Returns whether a round is saved even if it is neither the last nor the best."""
        if self._config.checkpoint_every:
            return round_num % self._config.checkpoint_every == 0
        return monotonic() - self._saved_at >= CHECKPOINT_SECONDS

    def is_behind(self, round_num: int) -> bool:
        """Returns whether the newest checkpoint is of an earlier round."""
        return self._saved_round < round_num

    def save(self, state: ServerState, logs: Iterable[RunLog], best_round: int | None) -> None:
        """Writes the checkpoint of a state, after the client states and the buffers of the logs.

        Args:
            state: The state after the last completed round.
            logs: The logs of the run.
            best_round: The round whose checkpoint is kept besides the newest; None for none.

        Raises:
            RunError: A file cannot be written.
        """
        kept = folder.checkpoint_rounds(self._run.path)
        for states in client_states_of(state):
            states.save(kept)
        for log in logs:
            log.flush()
        content = self._federation.encode(state, self._config_text)
        self._run.save_checkpoint(state.round_num, content)
        self.drop_old(best_round)
        self._saved_round = state.round_num
        self._saved_at = monotonic()

    def drop_old(self, best_round: int | None) -> None:
        """Deletes the checkpoints that are no longer kept."""
        self._run.drop_checkpoints(num_kept=self._config.keep_checkpoints, best_round=best_round)
