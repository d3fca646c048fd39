"""The rows of a pass follow from activations, and nesting a model's layers adds none."""

import torch
from torch import Tensor, nn

from bench.engine import timing

X = torch.rand(2, 1, 28, 28)


def layers() -> list[nn.Module]:
    return [
        nn.Conv2d(1, 28, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(28, 28, 3, padding=1),
        nn.Flatten(), nn.Linear(28 * 784, 10),
    ]  # fmt: skip


class Outer(nn.Module):
    """Adds to what its layers return: an activation of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def test_nested_containers_hold_as_many_rows_as_flat_ones() -> None:
    flat = nn.Sequential(*layers())
    parts = layers()
    nested = nn.Sequential(
        nn.Sequential(nn.Sequential(nn.Sequential(parts[0], parts[1]))),
        nn.Sequential(nn.Sequential(nn.Sequential(nn.Sequential(parts[2]))), parts[3]),
        nn.Sequential(nn.Sequential(parts[4])),
    )
    assert timing.rows_per_pass(nested, X) == timing.rows_per_pass(flat, X) == 64


def test_what_a_container_computes_itself_is_counted() -> None:
    plain = nn.Conv2d(1, 1, 3, padding=1)
    x = torch.rand(1, 1, 320, 320)
    rows = [timing.rows_per_pass(net, x) for net in (plain, Outer(plain), Outer(Outer(plain)))]
    assert rows == [32, 16, 16]
