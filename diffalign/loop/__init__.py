"""The whole loop: generate, look, vote, turn votes into preferences, train, evaluate, and again."""
