"""Model versions in MLflow, and the decision about which one is champion."""
