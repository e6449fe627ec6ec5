"""Online alignment: the policy makes pictures, rewards judge them, and it learns from that, over and over."""
