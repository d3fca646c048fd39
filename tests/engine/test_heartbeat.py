"""Signs of life: what a watcher of this process counts."""

import pytest
import torch
from torch import nn

from bench.engine import heartbeat


def test_the_outermost_call_counts_at_its_beginning_and_end_and_its_layers_do_not() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    beats: list[int] = []
    with heartbeat.heartbeats(lambda: beats.append(1)):
        net(torch.zeros(1, 3))
        assert len(beats) == 2
        net(torch.zeros(1, 3))
        assert len(beats) == 4
    net(torch.zeros(1, 3))
    assert len(beats) == 4


def test_a_call_that_raises_has_ended() -> None:
    net, beats = nn.Sequential(nn.Linear(3, 3)), []
    with heartbeat.heartbeats(lambda: beats.append(1)):
        with pytest.raises(RuntimeError):
            net(torch.zeros(1, 4))
        net(torch.zeros(1, 3))
    assert len(beats) == 4


class Leaving(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise SystemExit


def test_a_call_that_was_left_by_force_is_forgotten_when_asked() -> None:
    beats: list[int] = []
    with heartbeat.heartbeats(lambda: beats.append(1)) as life:
        with pytest.raises(SystemExit):
            Leaving()(torch.zeros(1))
        life.forget()
        nn.Identity()(torch.zeros(1))
    assert len(beats) == 3


def test_a_replayed_turn_is_a_sign_of_life_too() -> None:
    beats: list[int] = []
    with heartbeat.heartbeats(lambda: beats.append(1)):
        heartbeat.beat()
    heartbeat.beat()
    assert beats == [1]
