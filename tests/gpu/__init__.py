"""The GPU path, tested on a CPU through pretended devices.

- `fake_cuda` replaces `torch.cuda`: devices, streams, graphs with their memory and error modes.
  Tensors stay on the CPU and claim to be on one of the devices, and a graph records the operations
  of a capture and repeats them on the same memory, as CUDA does.
- `launch_counts` counts kernels, launches and host reads of an attack on such a device, and
  `test_launch_budgets` holds them down.
- `test_kept_graphs` is about graphs that stay for the next chunk.
- `test_devices` uses it for machines with several GPUs, for threads beside a capture, for the
  lifetime of graphs, and for captures that fail.

The tests of `tests/engine/test_cuda_graphs.py` compare replayed with ordinary steps for every rule;
the last of them needs a GPU.
"""
