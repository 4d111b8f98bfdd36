"""The connection to a Ray cluster: joining one, or starting one of this machine alone.

Only this module and the two that import it use Ray.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from typing import Any

from fedcli.errors import ConfigError

LOCAL, AUTO = "local", "auto"

_CONNECT_SECONDS = 10.0
_STORE_BYTES = 256 << 20  # of a local cluster's object store; it spills to the disk


class Connection:
    """A connection of this process to a cluster.

    Attributes:
        ray: The module `ray`.
    """

    def __init__(self, address: str) -> None:
        """Connects. A process that is connected already stays in its cluster.

        Args:
            address: `local` for a cluster of this machine alone, `auto` for the one that this
                machine belongs to, or HOST:PORT.

        Raises:
            ConfigError: Ray is not installed, or there is no cluster at the address.
        """
        self.ray = _import_ray()
        _check_address(address)
        self._folder: str | None = None
        self._is_own = not self.ray.is_initialized()
        if self._is_own:
            self._connect(address)

    def nodes(self) -> list[dict[str, Any]]:
        """Returns the nodes that are alive and have processors."""
        alive = [each for each in self.ray.nodes() if each["Alive"]]
        return [each for each in alive if each["Resources"].get("CPU", 0) >= 1]

    def close(self) -> None:
        """Disconnects, and ends the cluster if it was started here."""
        if self._is_own and self.ray.is_initialized():
            self.ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self, address: str) -> None:
        logging.getLogger("ray").setLevel(logging.ERROR)  # users cannot act on its warnings
        options: dict[str, Any] = {
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "ERROR",
            "configure_logging": False,
        }
        if address == LOCAL:
            self._folder = tempfile.mkdtemp(prefix="fray-")  # short, as paths of sockets must be
            options |= {"object_store_memory": _STORE_BYTES, "_temp_dir": self._folder}
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


def _check_address(address: str) -> None:
    """Rejects an address at which nobody answers. Ray itself tries for minutes."""
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
