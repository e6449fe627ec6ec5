"""Votes of people on pairs of pictures: read, checked, summed up, and turned into preferences to train on."""
