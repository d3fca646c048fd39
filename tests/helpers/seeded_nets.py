"""Code of a suite's folder that makes small nets: the same weights and images every time."""

from pathlib import Path

SEEDED = '''
import torch
from torch import nn

def seeded(net):
    """The net with all parameters drawn from N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return net

def labelled(net, n, side):
    """n grey images drawn from U[0, 1), and the classes that the net predicts."""
    images = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, net(images).argmax(1)
'''


def write_suite(folder: Path, net: str, suite: str) -> str:
    """Write net.py and s.toml into a folder, and return the path of the suite."""
    (folder / "net.py").write_text(net, encoding="utf-8")
    path = folder / "s.toml"
    path.write_text(suite, encoding="utf-8")
    return str(path)
