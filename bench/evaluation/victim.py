"""Count and cap the queries that an attack on a source makes of the victim, the judged model.

`CountedVictim` is the only access that such an attack has to the victim. It counts each image where
the victim's forward pass is called, and answers nothing beyond the budget. The clean predictions
and the judge's verdicts are passes of the evaluation, not of the attacker, and are not counted.
"""

import torch
from torch import Tensor, nn

from bench.core.contracts.types import Goal
from bench.engine import timing
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.logits import reaches_goal, widen
from bench.engine.model_state import call_model, eval_mode, is_out_of_memory
from bench.engine.rejection import merge_rejection, spares_rejected


class CountedVictim:
    """The victim as an attack may query it: whether an image reaches the goal, and no more."""

    def __init__(
        self, model: nn.Module, y: Tensor, goal: Goal, budget: int, n_eps: int, rows: int
    ) -> None:
        """Start without queries.

        Args:
            model: The judged model, which answers alike every time.
            y: Class to leave or to reach, (n,), int64.
            goal: Goal of the attack.
            budget: Most queries for one example at one eps.
            n_eps: Number of eps.
            rows: Most images per pass; halved as often as memory runs out.
        """
        self._model, self._y, self._goal = model, y, goal
        self._budget, self._rows = budget, rows
        self._merges = goal == "untargeted" and spares_rejected(model)
        self.queries = torch.zeros(n_eps, len(y), dtype=torch.int64, device=y.device)
        """Images of each example that the victim was asked about, (e, n)."""
        self.seconds = 0.0
        """Time of the victim's passes."""

    def ask(self, eps: Tensor, example: Tensor, images: Tensor) -> Tensor:
        """Ask the victim about images, as `bench.engine.victim_queries.AskVictim`.

        Args:
            eps: Index of the eps of each image, (k,).
            example: Index of its example, (k,); a pair with the eps occurs once.
            images: Images, (k, c, h, w), in [0, 1].

        Returns:
            Whether each reaches the goal, (k,), bool. An image beyond the budget is not shown and
            counts as none that does; so do answers that are not finite.
        """
        reached = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        allowed = (self.queries[eps, example] < self._budget).nonzero()[:, 0]
        first = 0
        while first < len(allowed):
            rows = allowed[first : first + self._rows]
            try:
                logits, seconds = timing.time_call(
                    lambda rows=rows: self._predict(images[rows]), images.device
                )
            except RuntimeError as error:
                if self._rows == 1 or not is_out_of_memory(error):
                    raise
                self._rows //= 2
                continue
            self.queries[eps[rows], example[rows]] += 1
            self.seconds += seconds
            y = self._y[example[rows]]
            if self._merges:
                logits = merge_rejection(logits, y)
            won = reaches_goal(logits, y, self._goal)
            reached[rows] = won & logits.isfinite().all(1)
            first += len(rows)
        return reached

    def _predict(self, images: Tensor) -> Tensor:
        """Compute the victim's logits in evaluation mode and full precision, as the judge does."""
        with eval_mode(self._model), torch.no_grad(), allow_tf32(False):
            return widen(call_model(self._model, images))

    def divide_seconds(self) -> list[float]:
        """Divide the time of the victim's passes among the eps, by their queries.

        Returns:
            Seconds for each eps.
        """
        made = self.queries.sum(1).double()
        return (self.seconds * made / made.sum().clamp_min(1)).tolist()
