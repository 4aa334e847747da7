"""transformers' `generate` on the same weights, in the same process, with the times of its steps."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.engine_driver import Timeline


class _StepTimes(transformers.StoppingCriteria):
    """Never stops; notes when each step's tokens are known."""

    def __init__(self, start_s: float) -> None:
        self.times_s: list[float] = []
        self._start_s = start_s

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        self.times_s.append(time.perf_counter() - self._start_s)
        return torch.zeros(len(input_ids), dtype=torch.bool)


class TransformersPeer:
    """Greedy generation of equally long prompts as one batch, its defaults otherwise."""

    def __init__(self, folder: Path, dtype: str) -> None:
        transformers.utils.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def run(self, prompts: Sequence[Sequence[int]], num_new: int) -> Timeline:
        """As EngineDriver.run."""
        ids = torch.tensor(prompts)
        start_s = time.perf_counter()
        steps = _StepTimes(start_s)
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[steps],
        )
        end_s = time.perf_counter() - start_s
        first_s = [steps.times_s[0]] * len(prompts)
        return Timeline(first_s, steps.times_s, end_s, output[:, ids.shape[1] :].tolist())


def write_random_checkpoint(folder: Path, seed: int) -> None:
    """Fill a folder that has a config.json with weights that transformers draws."""
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
