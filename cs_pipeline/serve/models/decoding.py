"""Generates the answers of one micro-batch. Each row has its own temperature, top-p, seed and limits."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from cs_pipeline.serve.models.jobs import Job

_MIN_TEMPERATURE = 0.01
"""Below this temperature decoding is greedy: in float32 the division would overflow."""


class RowStopping(StoppingCriteria):
    """Gives each row's new token to its job, and reports which rows have ended."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """``input_ids``: shape [rows, tokens], the new token last. Returns a mask of the ended rows, shape [rows]."""
        for job, token in zip(self._jobs, input_ids[:, -1].tolist(), strict=True):
            if job.done.is_set():
                continue
            if token in job.variant.stops:
                job.end("stop")
                continue
            job.tokens.append(token)
            if early := job.early_finish():
                job.end(early)
        return torch.tensor([job.done.is_set() for job in self._jobs], device=input_ids.device)


class RowSampler(LogitsProcessor):
    """Samples a token for each row with a temperature, and masks its other tokens so that greedy decoding picks it.

    Each row draws from its own seed, so the other rows of the batch do not affect it. Nucleus sampling as in Holtzman et
    al. 2020 (arXiv 1904.09751): the fewest tokens whose probabilities sum to ``top_p``.
    """

    def __init__(self, jobs: Sequence[Job], device: torch.device) -> None:
        sampled = [(i, job.sampling) for i, job in enumerate(jobs) if job.sampling.temperature >= _MIN_TEMPERATURE]
        self._generators = [random.Random(sampling.seed) for _, sampling in sampled]
        self._rows = torch.tensor([i for i, _ in sampled], device=device)
        self._temperature = torch.tensor([[s.temperature] for _, s in sampled], dtype=torch.float32, device=device)
        self._top_p = torch.tensor([[s.top_p] for _, s in sampled], dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores``: shape [rows, vocabulary], in float32."""
        probabilities, order = (scores[self._rows] / self._temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        preceding = probabilities.cumsum(dim=-1) - probabilities
        nucleus = probabilities.masked_fill(preceding >= self._top_p, 0.0)
        nucleus[:, 0] = probabilities[:, 0]
        cumulative = nucleus.cumsum(dim=-1)
        # The dtype is explicit: while another thread loads a model, torch's default dtype is that model's.
        draws = [[generator.random()] for generator in self._generators]
        drawn = torch.tensor(draws, dtype=torch.float32, device=scores.device) * cumulative[:, -1:]
        position = torch.searchsorted(cumulative, drawn, right=True).clamp(max=scores.shape[-1] - 1)
        scores = scores.clone()
        scores[self._rows] = -torch.inf
        scores[self._rows, order.gather(1, position).squeeze(1)] = 0.0
        return scores


def decode(model: Any, jobs: Sequence[Job]) -> None:
    """Answers ``jobs``, which all use one variant. Each job ends when its row does; all have ended when this returns."""
    chat, stops = jobs[0].variant.chat, jobs[0].variant.stops
    inputs = chat.tokenizer.pad({"input_ids": [job.prompt for job in jobs]}, return_tensors="pt").to(model.device)
    sampled = any(job.sampling.temperature >= _MIN_TEMPERATURE for job in jobs)
    with torch.inference_mode():
        model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max(job.max_tokens for job in jobs),
            eos_token_id=sorted(stops),
            pad_token_id=chat.tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([RowSampler(jobs, model.device)] if sampled else []),
            stopping_criteria=StoppingCriteriaList([RowStopping(jobs)]),
        )
