"""What the host may wait for or copy, and why: everything else on a GPU is an error.

An entry is a function in a file of the package; or a file or folder, where all of it runs once or
where it is the loop itself. A step of an attack, which a GPU
replays as a graph, may do none of it, except for `TABLES`.
"""

from collections.abc import Sequence

from gpu.fake_tensors import Event

ONCE = "once for each attack, model or run"
CHUNK = "once for each chunk or cell, of up to 10,000 examples on a GPU"
LOOP = "between steps; test_launch_budgets.py holds how often"
RECORDS = "records and sentences are made on the host, once for each cell of a chunk"
FAMILY = "images of a family are described in words, and rebuilt, by the host"
RANDOM = "an id seeds the draws of a model that answers at random"
FOREIGN = "an attack with its own loop, which is replayed in no graph"

TABLES = {
    "attacks/apgd.py (_mark_checkpoints)": ONCE,
    "attacks/square_windows.py (make_tables)": ONCE,
    "attacks/square_windows.py (make_tile)": ONCE,
    "attacks/surfree.py (make_cosines)": ONCE,
}
"""Tables made in the first step of a shape, before a step is captured, and kept."""

KNOWN = {
    "core/rng.py": "numbers of a start are drawn on the host, so that they are the same everywhere",
    "engine/stream.py": LOOP,
    "engine/active_rows.py": LOOP,
    "engine/item_queue.py": LOOP,
    "engine/resident_rows.py": LOOP,
    "engine/step_maker.py (StepMaker.__init__)": CHUNK,
    "engine/stream_result.py": LOOP,
    "engine/tensor_tree.py": LOOP,
    "engine/cuda_graphs.py": "a capture is compared with the step, once for each size",
    "engine/model_state.py (_find_changed)": CHUNK,
    "engine/timing.py (noisy_images)": ONCE,
    "engine/acceleration/agreement.py (describe_difference)": CHUNK,
    "engine/threats/patch.py": FAMILY,
    "engine/threats/rotation_translation.py": FAMILY,
    "datasets/prefetch.py (Prefetcher._keep)": "images come to the GPU, chunk by chunk",
    "datasets/prefetch.py (Prefetcher.read)": "images come to the GPU, chunk by chunk",
    "evaluation/audit/": ONCE,
    "evaluation/certification/": "certificates are read chunk by chunk, draws are the host's",
    "evaluation/chunk.py (evaluate_chunk)": CHUNK,
    "evaluation/chunk.py (evaluate_chunk.<genexpr>)": CHUNK,
    "evaluation/chunk.py (_are_equal)": CHUNK,
    "evaluation/chunk.py (_count_cost)": CHUNK,
    "evaluation/chunk.py (_restore_clean_predictions)": CHUNK,
    "evaluation/chunk.py (_search_distance)": CHUNK,
    "evaluation/chunk_records.py": RECORDS,
    "evaluation/crafting.py (craft)": CHUNK,
    "evaluation/crafting.py (_seed_random_model)": RANDOM,
    "evaluation/crafting.py (_run_batch)": FOREIGN,
    "evaluation/crafting.py (_run_external)": FOREIGN,
    "evaluation/containment.py (_are_same)": FOREIGN,
    "evaluation/consistency.py (AnswerMonitor._read_images)": CHUNK,
    "evaluation/consistency.py (first_difference)": CHUNK,
    "evaluation/certified_examples.py": CHUNK,
    "evaluation/classifier_attack.py": CHUNK,
    "evaluation/ensemble.py (_count_resisting)": "how many resist, once for each part and eps",
    "evaluation/ensemble.py (_run_part)": "who still resists, once for each part and eps",
    "evaluation/evaluator.py (Evaluator.clean_pass)": CHUNK,
    "evaluation/judge.py (vote_for)": RANDOM,
    "evaluation/live_models.py (prepare_live_model)": ONCE,
    "evaluation/loading.py (load_model)": ONCE,
    "evaluation/model_pool.py (ModelPool._make_accelerated)": ONCE,
    "evaluation/model_pool.py (ModelPool.floor)": ONCE,
    "evaluation/suite_models.py (choose_rows)": ONCE,
    "evaluation/verify.py (find_violations)": RECORDS,
    "evaluation/verify.py (find_output_violations)": FAMILY,
    "evaluation/verify.py (_find_disagreement)": CHUNK,
    "evaluation/verify.py (_recheck_claims)": CHUNK,
    "evaluation/verify.py (_recheck_claims.<genexpr>)": CHUNK,
    "evaluation/victim.py (CountedVictim.ask)": "as many images are shown as the budget leaves",
    "evaluation/victim.py (CountedVictim.divide_seconds)": CHUNK,
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
    prefixes = tuple(known)
    return sorted(
        {
            str(event)
            for event in events
            if event.kind == "mixed" or not f"{event.file} ({event.function})".startswith(prefixes)
        }
    )
