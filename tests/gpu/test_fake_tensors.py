"""The pretended GPU itself: planted offenders of every kind are noted with their file and line."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.attacks import pgd
from bench.core.contracts.rule import Rule
from bench.engine import stream
from gpu.fake_tensors import FakeDevice, MixedDeviceError
from gpu.known_events import TABLES, find_unknown
from gpu.pretended import Machine, SmallNet, make_spec

HOST = torch.ones(3, 1, 28, 28)
HERE = "test_fake_tensors.py"


def read_number(x: Tensor) -> Tensor:
    return x * min(x.amax().item(), 1)


def branch(x: Tensor) -> Tensor:
    return x if (x < 2).all() else x / 2


def read_integer(x: Tensor) -> Tensor:
    return x[int(x.flatten(1).argmax(1).amin()) * 0 :]


def read_list(x: Tensor) -> Tensor:
    return x + 0 * sum(x[0, 0, 0].tolist())


def find_entries(x: Tensor) -> Tensor:
    return x + 0 * len(x.nonzero())


def select_by_mask(x: Tensor) -> Tensor:
    return x + 0 * x[x > 0.5].sum()


def write_by_mask(x: Tensor) -> Tensor:
    x[x > 0.5] = x[x > 0.5]
    return x


def compare(x: Tensor) -> Tensor:
    return x if torch.equal(x, x) else x / 2


def copy_to_host(x: Tensor) -> Tensor:
    return x.cpu().to(x.device)


def create_from_list(x: Tensor) -> Tensor:
    return x * torch.tensor([1.0], device=x.device)


def copy_from_host(x: Tensor) -> Tensor:
    return x * torch.ones(1).to(x.device)


def copy_into(x: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(HOST[: len(x)]) * 0 + x


def index_from_host(x: Tensor) -> Tensor:
    return x[torch.arange(len(x))]


def index_by_list(x: Tensor) -> Tensor:
    return x[list(range(len(x)))]


def choose_a_number_of_the_host(x: Tensor) -> Tensor:
    return torch.where(x > 2, torch.zeros(()), x)


def add_host(x: Tensor) -> Tensor:
    return x + HOST[: len(x)]


def index_on_host(x: Tensor) -> Tensor:
    return x + HOST[x.flatten(1).argmax(1) * 0]


def convert_to_numpy(x: Tensor) -> Tensor:
    return x + float(np.asarray(x).max() * 0)


WAITING = [read_number, branch, read_integer, read_list, find_entries, select_by_mask,
           write_by_mask, compare]  # fmt: skip
COPYING = [copy_to_host, create_from_list, copy_from_host, copy_into, index_from_host,
           index_by_list, choose_a_number_of_the_host]  # fmt: skip
REFUSED = [add_host, index_on_host]


def attack_with(offend: Callable[[Tensor], Tensor]) -> Machine:
    """Attack by PGD's rule with an offence in its step."""

    def step(state: Any, gradient: Tensor, *rest: Any) -> Any:
        after = pgd.step(state, gradient, *rest)
        return after._replace(x=offend(after.x))

    spec = make_spec("pgd", "linf", stop="never", eps=(0.1,))
    attack = replace(spec.attack, rule=Rule(init=pgd.init, step=step))
    spec = replace(spec, attack=attack, params=replace(spec.params, steps=1, restarts=1))
    machine, net = Machine(), SmallNet()
    machine.gpu.upload_module(net)
    with machine.run() as upload:
        ids = torch.arange(2)
        stream.run_attack(net, spec, upload(torch.rand(2, 1, 28, 28)), upload(ids), upload(ids), 2)
    return machine


def line_of(function: Callable[..., Any]) -> int:
    """Line of the only statement, or the first of two."""
    return inspect.getsourcelines(function)[1] + 1


@pytest.mark.parametrize("offend", [*WAITING, *COPYING], ids=lambda each: each.__name__)
def test_an_offender_in_a_rule_is_named_with_file_and_line(offend: Any) -> None:
    unknown = find_unknown(attack_with(offend).in_steps, tuple(TABLES))
    assert unknown
    assert all(each.startswith(f"{HERE}:{line_of(offend)} ({offend.__name__})") for each in unknown)
    kinds = ("read",) if offend in WAITING else ("upload", "download")
    assert all(any(f": {kind} by" in each for kind in kinds) for each in unknown)


@pytest.mark.parametrize("offend", REFUSED, ids=lambda each: each.__name__)
def test_mixed_devices_are_refused_with_file_and_line(offend: Any) -> None:
    with pytest.raises(MixedDeviceError, match=rf"{HERE}:{line_of(offend)} \({offend.__name__}\)"):
        attack_with(offend)


def test_a_tensor_of_the_gpu_is_no_array() -> None:
    with pytest.raises(TypeError, match=rf"{HERE}:{line_of(convert_to_numpy)}"):
        attack_with(convert_to_numpy)


def test_a_rule_without_offence_is_not_accused() -> None:
    machine = attack_with(lambda x: x.clamp(0, 1).masked_fill(x.isnan(), 0.0))
    assert machine.in_steps == []
    assert find_unknown(machine.gpu.events) == []


def test_tensors_say_where_they_are_and_keep_their_numbers() -> None:
    gpu = FakeDevice()
    with gpu.pretend() as device:
        host = torch.arange(4.0)
        there = host.to(device)
        assert (host.device.type, there.device, there.is_cuda) == ("cpu", device, True)
        created = [
            there * 2, there[1:], there.view(2, 2), torch.zeros_like(there), there.new_ones(2),
            torch.where(there > 1, there, 0.5), torch.ones(2, device=device),
        ]  # fmt: skip
        assert {each.device for each in created} == {device}
        assert {each.device.type for each in (torch.zeros(2), host + 1, there.cpu())} == {"cpu"}
        assert [event.kind for event in gpu.events] == ["upload", "download"]
    assert torch.equal(there, host)


def test_gradients_are_computed_where_their_tensors_are() -> None:
    gpu, net = FakeDevice(), SmallNet()
    gpu.upload_module(net)
    x = torch.rand(2, 1, 28, 28)
    with gpu.pretend():
        given = gpu.upload(x).requires_grad_()
        (there,) = torch.autograd.grad(net(given).logsumexp(1).sum(), given)
        assert there.is_cuda
    given = x.clone().requires_grad_()
    (here,) = torch.autograd.grad(net(given).logsumexp(1).sum(), given)
    assert torch.equal(there, here)
    assert gpu.events == []


def test_modules_move_and_copies_stay_where_they_are() -> None:
    gpu = FakeDevice()
    with gpu.pretend() as device:
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(device)
        again = copy.deepcopy(net)
        assert {each.device for each in again.state_dict().values()} == {device}
        again(torch.ones(1, 1, 4, 4, device=device))
