"""The code version of every asset.

Dagster and the fingerprints of the stages use the same version. So Dagster marks an asset as stale exactly when its stage
would compute it again.
"""

from typing import Final

CODE_VERSIONS: Final = {
    "bitext_conversations": "2",
    "company_interactions": "2",
    "clean_bitext": "2",
    "bitext_splits": "2",
    "intent_classifier": "2",
    "clean_interactions": "3",
    "subjects": "2",
    "conversations": "2",
    "router": "2",
    "train_split": "3",
    "validation_split": "3",
    "test_split": "3",
    "knowledge_base": "2",
    "retrieval_index": "2",
    "base_model": "4",
    "adapter": "6",
    "evaluation": "10",
    "human_ratings": "1",
    "evaluation_report": "4",
    "leaderboard": "5",
    "model_version": "1",
    "champion": "5",
}
"""Raise an asset's number when its code gives a different result for the same input, and say why in CHANGELOG.md."""
