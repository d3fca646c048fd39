"""What the host may wait for or copy, and why: everything else on a GPU is an error.

An entry is a file of the package, or a file and a function in it. A step of an attack, which a GPU
replays as a graph, may do none of it, except for `TABLES`.
"""

from collections.abc import Sequence

from gpu.fake_tensors import Event

ONCE = "once for each attack, model or run"
CHUNK = "once for each chunk or cell, of 1,000 examples as a rule"
LOOP = "between steps; test_step_counts.py holds how often"
FOREIGN = "an attack with its own loop, which is replayed in no graph"

TABLES = {
    "attacks/square.py (make_tables)": ONCE,
    "attacks/square.py (make_tile)": ONCE,
    "attacks/surfree.py (make_cosines)": ONCE,
}
"""Tables made in the first step of a shape, before a step is captured, and kept."""

KNOWN = {
    "core/rng.py": "numbers of a start are drawn on the host, so that they are the same everywhere",
    "engine/stream.py": LOOP,
    "engine/item_queue.py": LOOP,
    "engine/tensor_tree.py": LOOP,
    "engine/cuda_graphs.py": "a capture is compared with the step, once for each size",
    "engine/model_state.py (_find_changed)": CHUNK,
    "engine/timing.py": ONCE,
    "engine/acceleration/accelerate.py": ONCE,
    "engine/acceleration/agreement.py": CHUNK,
    "engine/functional/norms.py (distance_float64)": CHUNK,
    "engine/threats/": "images of a family are described in words, and rebuilt, by the host",
    "datasets/prefetch.py": "images come to the GPU, chunk by chunk",
    "evaluation/audit/": ONCE,
    "evaluation/certification/": "certificates are read chunk by chunk, draws are the host's",
    "evaluation/chunk.py": CHUNK,
    "evaluation/consistency.py": CHUNK,
    "evaluation/evaluator.py (Evaluator.clean_pass)": CHUNK,
    "evaluation/live_models.py": ONCE,
    "evaluation/loading.py": ONCE,
    "evaluation/model_pool.py": ONCE,
    "evaluation/crafting.py": CHUNK,
    "evaluation/judge.py (vote_for)": "an id seeds the draws of a model that answers at random",
    "evaluation/verify.py": CHUNK,
    "evaluation/ensemble.py": "once for each part and eps of a chunk: who still resists",
    "evaluation/victim.py": "the victim is asked about as many images as are left to it",
    "evaluation/queries.py": FOREIGN,
    "evaluation/containment.py": "foreign code is compared with its state before, batch by batch",
    "models/fingerprint.py": ONCE,
    "models/preflight/": ONCE,
    "attacks/advgan.py (run)": "the generator moves to the GPU, once",
    "attacks/universal.py (_add)": "the perturbation moves to the GPU, once for each batch",
    "attacks/universal.py (verify)": CHUNK,
    "attacks/patch_pgd.py": FOREIGN,
    "attacks/rotation_translation.py": FOREIGN,
} | TABLES


def find_unknown(events: Sequence[Event], known: Sequence[str] = tuple(KNOWN)) -> list[str]:
    """The events that no entry allows, each once, as text; mixed devices are never allowed."""
    prefixes = tuple(entry.rstrip(")") for entry in known)
    return sorted(
        {
            str(event)
            for event in events
            if event.kind == "mixed" or not f"{event.file} ({event.function})".startswith(prefixes)
        }
    )
