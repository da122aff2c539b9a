"""A Dagster pipeline from support conversations to a measured, versioned, promoted support model."""

import os

# Nothing is sent anywhere unless the user asks for it. The libraries read these variables when they are first imported;
# every process of the pipeline imports this module first.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

OPENMP_WAITING = {"GOMP_SPINCOUNT": "3000", "OMP_WAIT_POLICY": "PASSIVE"}
"""Waiting PyTorch threads spin for a moment and then sleep: GNU OpenMP obeys the count, others the policy. If they
never sleep, two training runs on two cores slow each other down many times over. If they do not spin at all, a single
run takes 1.5 times as long (``bench/results/threads.json``)."""
if not OPENMP_WAITING.keys() & os.environ.keys():
    os.environ |= OPENMP_WAITING  # read once, when PyTorch is imported
