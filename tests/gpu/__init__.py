"""The GPU path, tested on a CPU through pretended devices.

- `fake_cuda` replaces `torch.cuda`: devices, streams, graphs with their memory and error modes.
  Tensors stay on the CPU and claim to be on one of the devices, and a graph records the operations
  of a capture and repeats them on the same memory, as CUDA does.
- `fake_tensors` lets each tensor say whether it is on a GPU, and notes with file and line what the
  host waits for, copies or mixes. `known_events` lists what is wanted, and why; `test_fake_tensors`
  plants offenders of each kind; `test_attacks_on_gpu` and `test_evaluation_on_gpu` run every rule
  in every norm, and every kind of attack with judge, verification and records; `test_runs_on_gpu`
  adds preflight, audit and certificates.
- `launch_counts` counts kernels, launches and host reads of an attack on such a device, and
  `test_launch_budgets` holds them down.
- `test_kept_graphs` is about graphs that stay for the next chunk.
- `test_devices` uses `fake_cuda` for machines with several GPUs, threads beside a capture, the
  lifetime of graphs, and captures that fail.

The tests of `tests/engine/test_cuda_graphs.py` compare replayed with ordinary steps for every rule;
the last of them needs a GPU.
"""
