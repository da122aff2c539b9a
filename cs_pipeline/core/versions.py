"""The code version of every asset.

Dagster and the fingerprints of the stages use the same version. So Dagster marks an asset as stale exactly when its stage
would compute it again.
"""

from typing import Final

CODE_VERSIONS: Final = {
    "bitext_conversations": "1",
    "company_interactions": "1",
    "clean_bitext": "1",
    "bitext_splits": "1",
    "intent_classifier": "2",
    "clean_interactions": "2",
    "conversations": "1",
    "train_split": "2",
    "validation_split": "2",
    "test_split": "2",
    "knowledge_base": "2",
    "retrieval_index": "1",
    "base_model": "4",
    "adapter": "5",
    "evaluation": "9",
    "human_ratings": "1",
    "evaluation_report": "3",
    "leaderboard": "4",
    "model_version": "1",
    "champion": "4",
}
"""Raise an asset's number when its code gives a different result for the same input, and say why in CHANGELOG.md."""
