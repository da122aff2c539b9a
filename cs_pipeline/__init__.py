"""A Dagster pipeline from support conversations to a measured, versioned, promoted support model."""

import os

# Nothing is sent anywhere unless the user asks for it. The libraries read these when they are first imported, in every
# process of the pipeline; this is the one place that all of them pass.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
