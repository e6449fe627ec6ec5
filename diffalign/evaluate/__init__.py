"""Evaluation: prompts, paired statistics, diversity, the report and the gallery."""
