"""The evaluation report and the leaderboard."""
