"""The gallery: one HTML file that shows models side by side, takes blind votes, and needs no network."""
