"""Evaluations that several threads of a process start at once have the results of one alone."""

import os
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core.exclusive import run_alone

Digits = tuple[Tensor, Tensor]


class Meeting(nn.Module):
    """Waits in each forward, for a moment, for another thread that is in one."""

    def __init__(self, net: nn.Module, inside: list[int], met: list[bool]) -> None:
        super().__init__()
        self.net = net
        self.inside, self.met = inside, met

    def forward(self, x: Tensor) -> Tensor:
        own = threading.get_ident()
        self.inside.append(own)
        self.met.append(any(other != own for other in self.inside))
        logits: Tensor = self.net(x)
        self.inside.remove(own)
        return logits


def in_threads(*work: Callable[[], object]) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_threads_are_not_inside_a_model_at_once(lenet: nn.Module, digits: Digits) -> None:
    x, y = digits[0][:16], digits[1][:16]
    inside: list[int] = []
    met: list[bool] = []
    start = threading.Barrier(2)
    results: list[bench.Evaluation] = []

    def evaluate() -> None:
        net = Meeting(lenet, inside, met)
        start.wait()
        results.append(
            bench.evaluate(net, x, y, params={"steps": 5}, device="cpu", allow=["random"])
        )

    in_threads(evaluate, evaluate)
    assert len(results) == 2
    assert not any(met)
    first, second = (each.records.drop(columns="seconds", errors="ignore") for each in results)
    assert torch.equal(torch.tensor(first["adv_pred"]), torch.tensor(second["adv_pred"]))


def test_an_evaluation_may_start_another_in_its_own_thread() -> None:
    with run_alone(), run_alone():
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_was_forked_meanwhile_does_not_wait_for_a_thread_it_lacks() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with run_alone():
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        entered = threading.Event()

        def enter() -> None:
            with run_alone():
                entered.set()

        threading.Thread(target=enter, daemon=True).start()
        os._exit(0 if entered.wait(10) else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
