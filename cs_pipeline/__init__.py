"""A Dagster pipeline from support conversations to a measured, versioned, promoted support model."""

import os

# Nothing is sent anywhere unless the user asks for it. The libraries read these when they are first imported, in every
# process of the pipeline; this is the one place that all of them pass.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# Threads of PyTorch that wait shall sleep, not spin: two processes with two spinning threads each on two cores slowed one
# another 25 times (measured with matrix products); the OpenMP library reads this when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
