"""The league: every objective on the same pipelines, preferences and budget, ranked by what they gain."""
