"""A Dagster pipeline from support conversations to a measured, versioned, promoted support model."""

import os

# Nothing is sent anywhere unless the user asks for it. The libraries read these when they are first imported, in every
# process of the pipeline; this is the one place that all of them pass.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

WAITING = {"GOMP_SPINCOUNT": "3000", "OMP_WAIT_POLICY": "PASSIVE"}
"""PyTorch's threads spin for a moment while they wait and then sleep: GNU's OpenMP by the count, others by the policy. If
they never sleep, two trainings on two cores slow one another many times over; without the moment one alone takes half as
long again (bench.threads)."""
if not WAITING.keys() & os.environ.keys():
    os.environ |= WAITING  # read once, when PyTorch is first imported
