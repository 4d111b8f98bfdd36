"""The connection to a Ray cluster: joins one, or starts one on this machine alone.

Only this module and the two that import it, `cluster.ray_workers` and `sweeps.ray_pool`, use Ray.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
from typing import Any

from fedcli.core.native import CancelFlag, Cancelled
from fedcli.errors import ConfigError

_LOGGER = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"

_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.05
_ENDING = "fedcli-ray-ending"  # the name of a thread that is disconnecting
_STORE_BYTES = 256 << 20  # size of a local cluster's object store, which spills to the disk


class Connection:
    """A connection of this process to a cluster.

    Attributes:
        ray: The module `ray`.
    """

    def __init__(self, address: str, cancel: CancelFlag | None = None) -> None:
        """Connects. A process that is connected already stays in its cluster.

        Args:
            address: `local` for a cluster on this machine alone, `auto` for the cluster to which
                this machine belongs, or HOST:PORT.
            cancel: Ends the wait for the connection.

        Raises:
            Cancelled: `cancel` was set.
            ConfigError: Ray is not installed, or there is no cluster at the address.
        """
        self.ray = _import_ray()
        _check_address(address)
        await_end()
        self._is_open = threading.Event()
        self._is_closed = threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._hold, args=(address,), daemon=True)
        if self.ray.is_initialized():
            return
        self._thread.start()
        try:
            self._await_opening(cancel)
        except BaseException:
            self.close()
            raise

    def nodes(self) -> list[dict[str, Any]]:
        """Returns the nodes that are alive and have processors, as `ray.nodes` describes them."""
        alive = [each for each in self.ray.nodes() if each["Alive"]]
        return [each for each in alive if each["Resources"].get("CPU", 0) >= 1]

    def close(self) -> None:
        """Disconnects, and ends the cluster if it was started here.

        This may take seconds on a busy machine, so this method does not wait for it. The next
        connection waits for it, and so does the end of the process. Meanwhile a command can say
        that its work is saved.
        """
        if self._thread.is_alive() and not self._is_closed.is_set():
            self._thread.name = _ENDING
            atexit.register(self._thread.join)
            self._is_closed.set()

    def _await_opening(self, cancel: CancelFlag | None) -> None:
        while not self._is_open.wait(_POLL_SECONDS):
            if cancel is not None and cancel.is_set():
                raise Cancelled
        if self._errors:
            raise self._errors[0]

    def _hold(self, address: str) -> None:
        """Connects, waits for `close`, and disconnects.

        All this is done in one thread, because Ray takes 5 s to disconnect in another thread.
        An error of the disconnection is logged in one line.
        """
        try:
            with contextlib.ExitStack() as stack:
                try:
                    self._connect(address, stack)
                except BaseException as err:  # raised in the thread that waits for the connection
                    self._errors.append(err)
                    return
                finally:
                    self._is_open.set()
                self._is_closed.wait()
        except Exception as err:  # Ray may raise errors of any class
            _LOGGER.warning(
                "could not end the connection to the Ray cluster at the address %s: %s; saved "
                "results are complete",
                address,
                last_line(err),
            )

    def _connect(self, address: str, stack: contextlib.ExitStack) -> None:
        """Connects; `stack` undoes it."""
        logging.getLogger("ray").setLevel(logging.ERROR)  # users cannot act on its warnings
        options: dict[str, Any] = {
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "ERROR",
            "configure_logging": False,
        }
        if address == LOCAL:
            folder = tempfile.mkdtemp(prefix="fray-")  # short, as paths of sockets must be
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {
                "object_store_memory": _STORE_BYTES,
                "_temp_dir": folder,
                # Version 1 of the autoscaler takes a second to end, for which Ctrl-C would wait.
                "_system_config": {"enable_autoscaler_v2": True},
            }
        else:
            options["address"] = address
        try:
            self.ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as err:
            reason = " ".join(str(err).split())
            raise ConfigError(
                f"cannot join a Ray cluster at the address {address}: {reason}; start one with "
                "'ray start --head', or give the address local"
            ) from err
        stack.callback(self.ray.shutdown)


def await_end() -> None:
    """Waits until the connections that this process has closed have ended."""
    for thread in threading.enumerate():
        if thread.name == _ENDING:
            thread.join()


def _check_address(address: str) -> None:
    """Rejects an address at which no process answers; Ray itself would try for minutes."""
    if address in (LOCAL, AUTO):
        return
    if address.startswith("ray://"):
        raise ConfigError(
            f"address {address}: a Ray client cannot train; run fedcli on a node of the cluster, "
            "with the address auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"address {address}: choose local, auto or HOST:PORT")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS):
            pass
    except (OSError, OverflowError) as err:
        raise ConfigError(
            f"cannot join a Ray cluster at the address {address}: {err}; start one with 'ray start "
            "--head', or give the address local"
        ) from err


def last_line(error: BaseException) -> str:
    """Returns the last line of an error of Ray, which states the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it when it is imported
    try:
        import ray
    except ImportError as err:
        raise ConfigError("Ray is not installed: pip install 'fedcli[ray]'") from err
    return ray
