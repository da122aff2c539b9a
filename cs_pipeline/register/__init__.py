"""Model versions in MLflow and the decision which one is champion."""
