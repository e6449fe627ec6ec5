"""Labels made by scorers: soft probabilities, rankings, calibrated rewards; and pairs made of images."""
