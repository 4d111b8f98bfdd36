"""Several runs in several threads of one program."""

from __future__ import annotations

import threading
from pathlib import Path

import fedcli
from fedcli.runs.files.folder import RunDirectory


def test_runs_in_several_threads_have_the_bytes_of_runs_alone(tmp_path: Path) -> None:
    configs = [
        fedcli.RunConfig(
            rounds=6, seed=seed, threads=1, checkpoint_every=1, eval_every=2, algorithm=algorithm
        )
        for seed in range(3)
        for algorithm in ("fedavg", "scaffold")
    ]
    failures: list[BaseException] = []

    def train(number: int) -> None:
        try:
            fedcli.train(configs[number], tmp_path / f"together{number}")
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=train, args=(number,)) for number in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number, config in enumerate(configs):
        alone = fedcli.train(config, tmp_path / f"alone{number}").path
        together = tmp_path / f"together{number}"
        names = ["metrics.jsonl", "evaluation.json", "checkpoints/round-000006.h5"]
        assert all((alone / name).read_bytes() == (together / name).read_bytes() for name in names)


def test_a_folder_that_is_being_made_can_be_locked_while_others_look_for_left_overs(
    tmp_path: Path,
) -> None:
    failures: list[BaseException] = []

    def create(number: int) -> None:
        try:
            for count in range(100):
                RunDirectory.create(tmp_path / f"{number}-{count}", "", b"").close()
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
