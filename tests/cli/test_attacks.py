"""Attacks at the command line: notes, pictures of triggers, reports."""

from __future__ import annotations

import json

import pytest

from tests.kit.command_line import Fedcli

BACKDOOR = (
    "train --data-option clients=12 --clients all --rounds 6 --attack backdoor --attackers 4 "
    "--attack-option target=3 --out run"
)


@pytest.fixture
def attacked(fedcli: Fedcli) -> Fedcli:
    done = fedcli(*BACKDOOR.split())
    assert done.code == 0, done.err
    assert "4 of 12 clients attack: backdoor" in done.err
    assert "--aggregator mean tolerates 0 attackers, and the cohort of 12 has 4" in done.err
    assert "attack_success_rate" in done.out
    return fedcli


def test_show_errors_draws_the_trigger(attacked: Fedcli) -> None:
    done = attacked("eval", "run", "--show-errors", "4")
    shown = done.out.partition("Examples as the attack makes them (test): label > predicted")[2]
    assert shown.count(">3") == 4
    assert "██" in shown
    told = json.loads(attacked("eval", "run", "--json").out)["attack"]
    assert (
        f"{told['num_successes']} of {told['num_aimed_at']} examples are predicted as the "
        "attackers want" in shown
    )
    assert told["attack_success_rate"] > 0.9


def test_inspect_clients_draws_what_attackers_train_on(attacked: Fedcli) -> None:
    plain = json.loads(attacked("inspect-clients", "--data-option", "clients=12", "--json").out)
    seen = attacked("inspect-clients", "--run", "run", "--json")
    assert "train: the examples of 4 attackers are shown as the attack backdoor" in seen.err
    counts = [
        {each["client_id"]: each["label_counts"] for each in told["splits"]["train"]["clients"]}
        for told in (plain, json.loads(seen.out))
    ]
    changed = [each for each in counts[0] if counts[0][each] != counts[1][each]]
    assert len(changed) == 4
    assert all(counts[1][each][3] > counts[0][each][3] for each in changed)
    drawn = attacked("inspect-clients", "--run", "run", "--show", changed[0], "--examples", "20")
    assert drawn.code == 0


def test_report_pairs_a_run_with_the_same_run_without_attack(attacked: Fedcli) -> None:
    arguments = "train --data-option clients=12 --clients all --rounds 6 --out plain -q"
    assert attacked(*arguments.split()).code == 0
    done = attacked("report", "run", "plain")
    table = done.out.partition("Impact of attacks on clean accuracy")[2].splitlines()
    assert table[3].split()[:2] == ["run", "plain"]
    alone = attacked("report", "run", "--format", "csv").out
    assert "attack success rate," in alone


def test_the_rounds_show_the_success_on_the_split_that_has_it(fedcli: Fedcli) -> None:
    done = fedcli(*BACKDOOR.split(), "--eval-every", "3")
    headers = done.out.splitlines()[1].split("   ")
    assert "test attack_success_rate" in [each.strip() for each in headers]
    assert "train attack_success_rate" not in done.out


def test_info_lists_the_attacks(fedcli: Fedcli) -> None:
    done = fedcli("info", "attacks")
    assert "min-max" in done.out
    assert "fedcli train --attack alie" in fedcli("info", "alie").out
