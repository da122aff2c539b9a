"""One micro-batch: each row has its own temperature, top-p, seed and limits, and leaves when it is at its end."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from cs_pipeline.serve.models.jobs import Job

GREEDY_BELOW = 0.01
"""A lower temperature is none: in float32 the division would overflow."""


class RowStopping(StoppingCriteria):
    """Gives each row's new token to its job, and says which rows have left the batch."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """``input_ids``: shape [rows, tokens], the new one last. True for each row whose answer is over."""
        for job, token in zip(self._jobs, input_ids[:, -1].tolist(), strict=True):
            if job.done.is_set():
                continue
            if token in job.voice.stops:
                job.end("stop")
                continue
            job.tokens.append(token)
            if early := job.over():
                job.end(early)
        return torch.tensor([job.done.is_set() for job in self._jobs], device=input_ids.device)


class Choice(LogitsProcessor):
    """Draws the tokens of the rows that have a temperature, so that the greedy choice that follows takes what was drawn.

    A row's draws come from its own seed: the rows beside it change nothing of them. Nucleus sampling as in Holtzman et al.
    2020 (arXiv 1904.09751): the fewest tokens whose probabilities sum to ``top_p``.
    """

    def __init__(self, jobs: Sequence[Job], device: torch.device) -> None:
        drawn = [(i, job.sampling) for i, job in enumerate(jobs) if job.sampling.temperature >= GREEDY_BELOW]
        self._dice = [random.Random(sampling.seed) for _, sampling in drawn]
        self._rows = torch.tensor([i for i, _ in drawn], device=device)
        self._temperature = torch.tensor([[s.temperature] for _, s in drawn], dtype=torch.float32, device=device)
        self._top_p = torch.tensor([[s.top_p] for _, s in drawn], dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores``: shape [rows, vocabulary], in float32."""
        probabilities, order = (scores[self._rows] / self._temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        kept = probabilities.masked_fill(before >= self._top_p, 0.0)
        kept[:, 0] = probabilities[:, 0]
        reached = kept.cumsum(dim=-1)
        # The type is named: while another thread loads a model, torch's default is that model's.
        thrown = torch.tensor([[die.random()] for die in self._dice], dtype=torch.float32, device=scores.device)
        thrown = thrown * reached[:, -1:]
        place = torch.searchsorted(reached, thrown, right=True).clamp(max=scores.shape[-1] - 1)
        scores = scores.clone()
        scores[self._rows] = -torch.inf
        scores[self._rows, order.gather(1, place).squeeze(1)] = 0.0
        return scores


def decode(model: Any, jobs: Sequence[Job]) -> None:
    """Answers ``jobs``, which are of one voice; each is ended when its row is, and all are when this returns."""
    chat, stops = jobs[0].voice.chat, jobs[0].voice.stops
    inputs = chat.tokenizer.pad({"input_ids": [job.prompt for job in jobs]}, return_tensors="pt").to(model.device)
    drawn = any(job.sampling.temperature >= GREEDY_BELOW for job in jobs)
    with torch.inference_mode():
        model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max(job.most for job in jobs),
            eos_token_id=sorted(stops),
            pad_token_id=chat.tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([Choice(jobs, model.device)] if drawn else []),
            stopping_criteria=StoppingCriteriaList([RowStopping(jobs)]),
        )
