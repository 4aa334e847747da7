"""The same model in transformers: an opinion that shares no code with the service."""

from collections.abc import Sequence

from deploy.chaos.cases import Case
from engine.models.hub import resolve_model


def greedy_tokens(model: str, cases: Sequence[Case]) -> list[list[int]]:
    """Greedy tokens of transformers' own generate, in float32 on the CPU."""
    import torch
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(
        resolve_model(model), dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    answers = []
    with torch.inference_mode():
        for case in cases:
            num_new = case.options["max_tokens"]
            ids = torch.tensor([case.prompt])
            output = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                do_sample=False,
                eos_token_id=None,
            )
            answers.append(output[0, len(case.prompt) :].tolist())
    return answers
