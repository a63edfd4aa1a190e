"""What a run is told: every setting, declared once, and how strictly it is read."""
